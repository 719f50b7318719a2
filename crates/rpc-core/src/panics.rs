//! Runs user code, which may panic at any point.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs user code. If it panics, returns the text of the panic as the error.
///
/// State that `code` changes must be valid after a panic.
pub(crate) fn catch_panic<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(into_text)
}

/// Returns the text of a panic, and drops its payload.
#[cold]
fn into_text(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("(no text)").to_owned();
    // The destructor of a payload may panic, and that of the second payload, too.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A payload whose destructor panics with another one.
    struct Nested(u32);

    impl Drop for Nested {
        fn drop(&mut self) {
            if self.0 > 0 {
                std::panic::panic_any(Self(self.0 - 1));
            }
        }
    }

    #[test]
    fn panic_becomes_text_and_its_payload_may_panic() {
        assert_eq!(catch_panic(|| 1), Ok(1));
        let text = catch_panic(|| panic!("number {}", 2)).unwrap_err();
        assert_eq!(text, "number 2");
        let text = catch_panic(|| std::panic::panic_any(Nested(3))).unwrap_err();
        assert_eq!(text, "(no text)");
    }
}

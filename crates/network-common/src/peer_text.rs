//! Texts that a peer chose, on their way into errors and logs.
//!
//! [`peer_text`] is applied where such a text becomes part of an error, and [`LogText`] where an
//! error or a name is logged. Both cut the text and escape what could forge a line of a log.

use std::fmt::{self, Write};

/// The most bytes of a peer's text in an error.
const MAX_TEXT: usize = 1 << 10;
/// The most bytes of a peer's name (of a stream or an application) in an error.
const MAX_NAME: usize = 256;
/// The most bytes of an error or name in a log line; a whole line is shorter than 1 KiB.
const MAX_LOGGED: usize = 640;
/// The mark at the end of a text that was cut.
const MARK: &str = "...";

/// Returns the failure text of a peer for an error of this side.
pub(crate) fn peer_text(text: impl fmt::Display) -> String {
    escape(&text, MAX_TEXT)
}

/// Returns a name that a peer sent, for an error of this side.
#[must_use]
pub fn peer_name(name: impl fmt::Display) -> String {
    escape(&name, MAX_NAME)
}

/// Displays an error with its causes, or another text, in one log line.
#[derive(Debug)]
#[allow(clippy::exhaustive_structs, reason = "not part of the API")]
pub struct LogText<T>(pub T);

impl<T: fmt::Display> fmt::Display for LogText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.0, MAX_LOGGED))
    }
}

fn escape(text: &dyn fmt::Display, limit: usize) -> String {
    let mut escaped = Escaped { text: String::new(), limit };
    // Fails when the text is cut; the rest is then not formatted.
    let _ = write!(escaped, "{text:#}");
    escaped.text
}

/// Collects at most `limit` bytes of escaped text.
struct Escaped {
    text: String,
    limit: usize,
}

impl Write for Escaped {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut encoded = [0; 4];
        for character in text.chars() {
            let (plain, escaped);
            let next: &str = if can_forge(character) {
                escaped = character.escape_default().to_string();
                &escaped
            } else {
                plain = character.encode_utf8(&mut encoded);
                plain
            };
            if self.text.len() + next.len() > self.limit {
                self.cut();
                return Err(fmt::Error);
            }
            self.text.push_str(next);
        }
        Ok(())
    }
}

impl Escaped {
    /// Makes space for the mark and appends it.
    fn cut(&mut self) {
        while self.text.len() + MARK.len() > self.limit {
            self.text.pop();
        }
        self.text.push_str(MARK);
    }
}

/// Returns whether a character could forge or hide a part of a line.
///
/// These are control characters, line and paragraph separators, and marks of text direction.
#[must_use]
pub fn can_forge(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_m3_forging_characters_are_escaped() {
        let text = "a\nb\r\x1b[2J\u{2028}\u{202e}\u{85}\u{0}é\u{1f600}";
        let escaped = peer_text(text);
        assert_eq!(escaped, "a\\nb\\r\\u{1b}[2J\\u{2028}\\u{202e}\\u{85}\\u{0}é\u{1f600}");
        assert_eq!(LogText(text).to_string(), escaped);
    }

    #[test]
    fn fault_m2_texts_are_cut_at_first_byte_too_many() {
        for (limit, cut) in [
            (MAX_TEXT, peer_text as fn(String) -> String),
            (MAX_NAME, peer_name),
            (MAX_LOGGED, |text| LogText(text).to_string()),
        ] {
            assert_eq!(cut("x".repeat(limit)), "x".repeat(limit));
            assert_eq!(cut("x".repeat(limit + 1)), "x".repeat(limit - 3) + "...");
            for text in ["\n".repeat(limit), "é".repeat(limit), "\u{1f600}".repeat(8 << 20)] {
                let text = cut(text);
                assert!(text.len() <= limit && text.ends_with("..."), "{text}");
            }
        }
    }
}

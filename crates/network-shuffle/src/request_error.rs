//! [`RequestError`], the failure of one request of a peer.

use std::fmt;

/// A request that fails; its text is sent to the peer, in the form that Spark's service has.
///
/// The text begins with the class of the exception that Spark would throw, because operators
/// search logs for it.
#[derive(Debug)]
pub(crate) struct RequestError {
    class: &'static str,
    text: String,
}

impl RequestError {
    pub(crate) fn illegal_argument(text: impl Into<String>) -> Self {
        Self { class: "java.lang.IllegalArgumentException", text: text.into() }
    }

    pub(crate) fn illegal_state(text: impl Into<String>) -> Self {
        Self { class: "java.lang.IllegalStateException", text: text.into() }
    }

    pub(crate) fn runtime(text: impl Into<String>) -> Self {
        Self { class: "java.lang.RuntimeException", text: text.into() }
    }

    pub(crate) fn out_of_bounds(text: impl Into<String>) -> Self {
        Self { class: "java.lang.IndexOutOfBoundsException", text: text.into() }
    }

    pub(crate) fn security(text: impl Into<String>) -> Self {
        Self { class: "java.lang.SecurityException", text: text.into() }
    }

    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self { class: "java.lang.UnsupportedOperationException", text: text.into() }
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.text)
    }
}

impl std::error::Error for RequestError {}

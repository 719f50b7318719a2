//! [`SendError`], which returns a message that was not accepted.

use std::error::Error as StdError;
use std::fmt;

use super::RpcError;

/// A message that was not accepted, and the reason.
///
/// [`send`](crate::RpcEndpointRef::send) and [`send_wait`](crate::RpcEndpointRef::send_wait) return
/// it. It converts into its [`RpcError`] by `?`.
///
/// ```
/// use rpc_core::{ErrorKind, SendError};
///
/// /// Returns the message if it may be sent again later.
/// fn keep<M>(rejected: SendError<M>) -> Option<M> {
///     (rejected.error().kind() == ErrorKind::Limit).then(|| rejected.into_message())
/// }
/// ```
pub struct SendError<R> {
    message: R,
    error: RpcError,
}

impl<R> SendError<R> {
    pub(crate) fn new(message: R, error: RpcError) -> Self {
        Self { message, error: error.mark_as_result() }
    }

    /// Returns the reason.
    #[must_use]
    pub fn error(&self) -> &RpcError {
        &self.error
    }

    /// Returns the message, to send it elsewhere or later.
    #[must_use]
    pub fn into_message(self) -> R {
        self.message
    }

    /// Returns the message and the reason.
    #[must_use]
    pub fn into_parts(self) -> (R, RpcError) {
        (self.message, self.error)
    }
}

impl<R> fmt::Display for SendError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl<R> fmt::Debug for SendError<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError").field("error", &self.error).finish_non_exhaustive()
    }
}

/// The text is that of the reason, so the source is the source of the reason.
impl<R> StdError for SendError<R> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// Drops the message, for `?`.
impl<R> From<SendError<R>> for RpcError {
    fn from(rejected: SendError<R>) -> Self {
        rejected.error
    }
}

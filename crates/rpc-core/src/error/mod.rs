//! [`RpcError`], the error type of this crate, its [`ErrorKind`], and [`SendError`].

mod convert;
mod details;
mod kind;
mod send_error;

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
pub use kind::ErrorKind;
pub use send_error::SendError;

use crate::peer_text::peer_text;

/// Any error, as [`RpcError::application`] takes it; `?` and `.into()` make one from a text, too.
///
/// ```
/// use rpc_core::BoxError;
///
/// let error: BoxError = "no such task".into();
/// assert_eq!(error.to_string(), "no such task");
/// ```
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// An error of this crate, or the failure that an endpoint reported.
///
/// The text names the peer, the operation and, for limits and timeouts, the setting. It does not
/// repeat the cause, which is the [`source`](StdError::source); `{error:#}` prints the error and
/// all its causes, separated by `: `. A failure that a peer reported has at most 32 causes, each as
/// a text.
///
/// Cloning is cheap. All requests that fail when a connection ends get the same error.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), rpc_core::RpcError> {
/// use rpc_core::{ErrorKind, RpcEnv};
///
/// let error = RpcEnv::builder("server").bind("driver:http").start().await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidAddress);
/// assert!(!error.is_retryable());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RpcError {
    inner: Arc<ErrorInner>,
    /// Is true if a request of this process ended with the error.
    ///
    /// Not in `inner`, which the endpoint that failed the request may share.
    received: bool,
}

struct ErrorInner {
    kind: ErrorKind,
    text: String,
    peer: Option<String>,
    remote: bool,
    retryable: bool,
    timeout: bool,
    code: Option<i32>,
    /// An encoded message of the application.
    details: Option<Bytes>,
    cause: Option<Cause>,
}

enum Cause {
    /// An error that the text does not contain.
    Source(BoxError),
    /// An error with the same text; its source is the source.
    Wrapped(BoxError),
}

/// Returns the error of a request that the endpoint dropped.
pub(crate) fn no_reply_error() -> RpcError {
    RpcError::new(ErrorKind::NoReply, "the endpoint dropped the request without a reply")
}

impl RpcError {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        let inner = ErrorInner {
            kind,
            text: text.into(),
            peer: None,
            remote: false,
            retryable: false,
            timeout: kind == ErrorKind::Timeout,
            code: None,
            details: None,
            cause: None,
        };
        Self { inner: Arc::new(inner), received: false }
    }

    /// Makes an error of the application, to return from `receive` or to send as a failure.
    ///
    /// See [`send_failure`](crate::RpcCallContext::send_failure). The error has the text and the
    /// sources of `cause`. A caller in the same process gets `cause` itself by
    /// [`get_ref`](Self::get_ref); a remote caller gets the texts. Both get the
    /// [code](Self::with_code) and the [details](Self::with_details). If `cause` is an `RpcError`, it
    /// is returned unchanged.
    ///
    /// ```
    /// use rpc_core::{ErrorKind, RpcError};
    ///
    /// let error = RpcError::application("no such task");
    /// assert_eq!(error.kind(), ErrorKind::Application);
    /// assert_eq!(error.to_string(), "no such task");
    /// ```
    #[must_use]
    pub fn application(cause: impl Into<BoxError>) -> Self {
        match cause.into().downcast::<Self>() {
            Ok(error) => *error,
            Err(cause) => Self::wrap(ErrorKind::Application, cause),
        }
    }

    /// Makes an error with the text and the sources of another one.
    fn wrap(kind: ErrorKind, error: impl Into<BoxError>) -> Self {
        let error = error.into();
        let text = error.to_string();
        Self::new(kind, text).change(|inner| inner.cause = Some(Cause::Wrapped(error)))
    }

    /// Marks this error as [retryable](Self::is_retryable).
    ///
    /// A handler calls it for a failure after which the caller may repeat the request. If the error
    /// is the result of an ask that the handler made itself, it becomes a failure of the handler:
    /// a retryable error of a nested ask is not retryable for the outer caller without this call.
    ///
    /// ```
    /// use rpc_core::RpcError;
    ///
    /// let error = RpcError::application("the task queue is full").retryable();
    /// assert!(error.is_retryable());
    /// ```
    #[must_use]
    pub fn retryable(self) -> Self {
        self.into_handler_failure().mark_retryable()
    }

    /// Marks this error as retryable, whatever its kind.
    pub(crate) fn mark_retryable(self) -> Self {
        self.change(|inner| inner.retryable = true)
    }

    /// Marks this error as the result of a request of this process.
    pub(crate) fn mark_as_result(mut self) -> Self {
        self.received = true;
        self
    }

    /// Converts this error into the failure of a request that this process handled.
    ///
    /// The peer and the retryable mark of a nested request do not hold for the handled request. The
    /// kinds are those that [`encode_failure`](crate::wire::encode_failure) distinguishes, so that
    /// local and remote callers get the same one.
    pub(crate) fn into_handler_failure(self) -> Self {
        let is_kept = match self.kind() {
            ErrorKind::Application
            | ErrorKind::Panic
            | ErrorKind::NoReply
            | ErrorKind::Stopped
            | ErrorKind::Timeout => true,
            // The limit of the inbox. One that the endpoint reached elsewhere is not retryable.
            ErrorKind::Limit => self.is_retryable(),
            _ => false,
        };
        if is_kept && !self.received {
            return self;
        }
        // A nested timeout is a timeout for each caller in the chain.
        let kind = if self.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Application };
        let (code, details) = (self.inner.code, self.inner.details.clone());
        Self::wrap(kind, self).with_payload(code, details)
    }

    pub(crate) fn with_text(self, text: String) -> Self {
        self.change(|inner| inner.text = text)
    }

    pub(crate) fn with_peer(self, peer: impl fmt::Display) -> Self {
        let peer = peer_text(&peer.to_string()).into_owned();
        self.change(|inner| inner.peer = Some(peer))
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.change(|inner| inner.cause = Some(Cause::Source(source.into())))
    }

    /// Returns the number of bytes of the texts of the error and all its causes.
    pub(crate) fn text_len(&self) -> usize {
        let sources = std::iter::successors(self.source(), |&error| error.source());
        let sources: usize = sources.map(|error| error.to_string().len()).sum();
        let details = self.inner.details.as_ref().map_or(0, Bytes::len);
        self.inner.text.len() + sources + details
    }

    /// Converts the error of the last attempt into the error of all `attempts`.
    ///
    /// `limit` is what limits their number.
    pub(crate) fn after_attempts(self, attempts: u32, limit: &str) -> Self {
        let peer = self.peer().map(|peer| format!("{peer}: ")).unwrap_or_default();
        let plural = if attempts == 1 { "" } else { "s" };
        let text = format!("{peer}no success after {attempts} attempt{plural} ({limit})");
        let last = self.clone();
        self.with_text(text).with_source(last)
    }

    pub(crate) fn mark_remote(self) -> Self {
        self.change(|inner| inner.remote = true)
    }

    fn change(mut self, change: impl FnOnce(&mut ErrorInner)) -> Self {
        match Arc::get_mut(&mut self.inner) {
            Some(inner) => {
                change(inner);
                self
            }
            // Clones must not change, so this makes a new error that wraps the shared one.
            None => {
                let received = self.received;
                let mut inner = ErrorInner {
                    kind: self.inner.kind,
                    text: self.inner.text.clone(),
                    peer: self.inner.peer.clone(),
                    remote: self.inner.remote,
                    retryable: self.inner.retryable,
                    timeout: self.inner.timeout,
                    code: self.inner.code,
                    details: self.inner.details.clone(),
                    cause: Some(Cause::Wrapped(Box::new(self))),
                };
                change(&mut inner);
                Self { inner: Arc::new(inner), received }
            }
        }
    }

    /// Returns the category of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns whether the same request may be repeated without being executed twice.
    ///
    /// True only if the request was certainly not executed, or the handler said that repeating it
    /// is safe; and if a repetition can succeed without a change of the request or of the settings.
    /// False means that the request may have been executed, or that a repetition is useless.
    ///
    /// A [`Timeout`](ErrorKind::Timeout) of an ask is therefore not retryable, unless the handler
    /// said so. A failed download is retryable if the connection caused it, because reading a file
    /// twice is safe.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// Returns whether a timeout caused the error, here or at the peer.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.inner.timeout
    }

    /// Returns whether the peer reported the error, as opposed to this process.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.inner.remote
    }

    /// Returns the endpoint or the environment that the failed operation addressed.
    ///
    /// An endpoint is `spark://name@host:port` or `spark-client://name`; an environment is
    /// `host:port`.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.inner.peer.as_deref()
    }

    /// Returns the error that this error wraps, as [`std::io::Error::get_ref`] does.
    ///
    /// It has the same text, so it is not a [`source`](StdError::source) of this error. This is how
    /// a caller in the same process gets the value that was passed to
    /// [`application`](Self::application). A caller in another process cannot, so where both must
    /// work, use [`code`](Self::code) and [`details`](Self::details).
    ///
    /// ```
    /// use rpc_core::RpcError;
    ///
    /// let error = RpcError::application(std::io::Error::other("disk full"));
    /// assert!(error.get_ref().is_some_and(|cause| cause.is::<std::io::Error>()));
    /// ```
    #[must_use]
    pub fn get_ref(&self) -> Option<&(dyn StdError + 'static)> {
        match &self.inner.cause {
            Some(Cause::Wrapped(error)) => Some(&**error),
            Some(Cause::Source(_)) | None => None,
        }
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.text)?;
        network_common::write_causes(self, f)
    }
}

impl fmt::Debug for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RpcError");
        out.field("kind", &self.inner.kind).field("text", &self.inner.text);
        if let Some(peer) = &self.inner.peer {
            out.field("peer", peer);
        }
        if self.inner.remote {
            out.field("remote", &true);
        }
        if let Some(code) = self.inner.code {
            out.field("code", &code);
        }
        if let Some(details) = &self.inner.details {
            out.field("details", &format_args!("{} bytes", details.len()));
        }
        match &self.inner.cause {
            Some(Cause::Source(source)) => out.field("source", source),
            Some(Cause::Wrapped(error)) => out.field("wrapped", error),
            None => &mut out,
        };
        out.finish_non_exhaustive()
    }
}

impl StdError for RpcError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self.inner.cause.as_ref()? {
            Cause::Source(source) => Some(&**source),
            Cause::Wrapped(error) => error.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::{ErrorKind, RpcError, SendError};

    #[test]
    fn alternate_display_contains_each_cause_once() {
        let application = || RpcError::application(io::Error::other("disk full"));
        assert_eq!(format!("{:#}", application()), "disk full");
        let nested = application().mark_as_result().into_handler_failure();
        assert_eq!(format!("{nested:#}"), "disk full");
        assert_eq!(format!("{:#}", SendError::new((), nested)), "disk full");
        let cause = io::Error::other("no such file");
        let config = RpcError::new(ErrorKind::Config, "the secret file x cannot be read");
        assert_eq!(
            format!("{:#}", config.with_source(cause)),
            "the secret file x cannot be read: no such file"
        );
    }

    #[test]
    fn error_is_retryable_only_if_its_handler_marked_it() {
        let nested = RpcError::application("busy").retryable().mark_as_result();
        assert!(nested.is_retryable());
        assert!(!nested.clone().into_handler_failure().is_retryable());
        assert!(nested.retryable().is_retryable());
        // The queue that was full is not that of the request.
        let full = RpcError::new(ErrorKind::Limit, "full").mark_retryable();
        let (_, full) = SendError::new((), full).into_parts();
        assert!(full.is_retryable() && !full.into_handler_failure().is_retryable());
        let timeout = RpcError::new(ErrorKind::Timeout, "late");
        assert!(timeout.is_timeout() && !timeout.is_retryable());
        let shared = RpcError::application("x");
        assert!(shared.clone().retryable().is_retryable() && !shared.is_retryable());
    }
}

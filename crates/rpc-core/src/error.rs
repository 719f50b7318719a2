//! What can go wrong, told to the person who must act.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use network_common::TransportError;

/// Any error with any cause, as [`RpcError::application`] takes it. `?` and `.into()` make one from
/// strings too.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What kind of thing went wrong (`rpc 11` has Spark's kinds).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, name or combination of options that cannot work. The text names it.
    Config,
    /// A text is not an address of the form it should have.
    InvalidAddress,
    /// The environment cannot listen at its address.
    Bind,
    /// No endpoint of that name is registered.
    EndpointNotFound,
    /// An endpoint of that name is registered already.
    EndpointExists,
    /// The endpoint is there, but takes other messages than those of the ref asked for.
    ServiceMismatch,
    /// The endpoint, or the environment it lived in, has stopped.
    Stopped,
    /// No answer within the time given. The request may or may not have been handled.
    Timeout,
    /// The asker gave up, with an [`AbortHandle`](crate::AbortHandle). The request may or may not
    /// have been handled.
    Aborted,
    /// The wait would hold up what it waits for: the endpoint itself, or a thread that many tasks
    /// share.
    Deadlock,
    /// The endpoint dropped the request without an answer.
    NoReply,
    /// The endpoint's handler panicked.
    Panic,
    /// The endpoint failed the request in its own terms.
    Application,
    /// The peer refused a message before any endpoint saw it: unknown endpoint or method,
    /// undecodable, stopped.
    Rejected,
    /// The peer has no such file to download, or cannot read it.
    FileUnavailable,
    /// The peer cannot be reached, or the connection was lost.
    Network,
    /// This environment and the peer did not prove to each other who they are: secrets or
    /// certificates differ, or one of them asks for security that the other does not offer. Nothing
    /// was sent.
    Authentication,
    /// A queue is full, here or at the peer; nothing was handled.
    Limit,
    /// A message's bytes are not what its schema says.
    Decode,
    /// A message without a schema was to leave the process.
    LocalOnly,
}

/// Why something failed.
///
/// Cheap to clone: when a connection breaks, everything that waited for it gets the same error.
/// [`source`](StdError::source) gives the cause: across the network its text, in one process the
/// object itself.
#[derive(Clone)]
pub struct RpcError {
    inner: Arc<ErrorInner>,
    /// A request of this process ended with it. Not in `inner`, which who failed that request may
    /// share.
    received: bool,
}

struct ErrorInner {
    kind: ErrorKind,
    text: String,
    peer: Option<String>,
    remote: bool,
    retryable: bool,
    timeout: bool,
    source: Option<BoxError>,
}

/// The endpoint dropped a request and gave no reason.
pub(crate) fn no_reply_error() -> RpcError {
    RpcError::new(ErrorKind::NoReply, "the endpoint dropped the request without an answer")
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
            source: None,
        };
        Self { inner: Arc::new(inner), received: false }
    }

    /// A failure in the application's own terms, for `receive` and
    /// [`send_failure`](crate::RpcCallContext::send_failure).
    ///
    /// An asker in the same environment finds `cause` as the [`source`](StdError::source); a remote
    /// one finds the text of it and of its causes. If `cause` is an `RpcError` already, it stays
    /// what it is.
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
            Err(cause) => Self::new(ErrorKind::Application, cause.to_string()).with_source(cause),
        }
    }

    /// What the transport reports about `peer`.
    pub(crate) fn from_transport(error: TransportError, peer: impl fmt::Display) -> Self {
        use network_common::ErrorKind as Transport;
        let kind = match error.kind() {
            Transport::Config => ErrorKind::Config,
            Transport::Bind => ErrorKind::Bind,
            Transport::Remote => ErrorKind::Rejected,
            Transport::StreamFailure => ErrorKind::FileUnavailable,
            Transport::Limit => ErrorKind::Limit,
            Transport::Bootstrap | Transport::Tls => ErrorKind::Authentication,
            _ => ErrorKind::Network,
        };
        let text = match kind {
            ErrorKind::Rejected => format!("{peer} refused the message: {error}"),
            _ => error.to_string(),
        };
        let (remote, timeout) = (error.is_remote(), error.is_timeout());
        // Only these are known to have sent nothing. A connection that is lost may have carried the
        // request.
        let unsent = matches!(
            error.kind(),
            Transport::Connect | Transport::ConnectTimeout | Transport::FastFail | Transport::Limit
        );
        Self::new(kind, text).with_peer(peer).with_source(error).change(|inner| {
            inner.remote = remote;
            inner.timeout = timeout;
            inner.retryable = unsent;
        })
    }

    /// What the transport says of settings.
    pub(crate) fn config(error: TransportError) -> Self {
        Self::new(ErrorKind::Config, error.to_string()).with_source(error)
    }

    /// This error, marked as one after which the same request may be repeated: it did no harm, and
    /// may succeed.
    ///
    /// What the endpoint's *own* requests ended with is not so marked for its asker, whatever it
    /// says itself: the endpoint has handled the request, so only the endpoint can know. Then this
    /// makes a new error with that as the source.
    #[must_use]
    pub fn retryable(self) -> Self {
        self.into_handler_failure().change(|inner| inner.retryable = true)
    }

    /// This error, as that of a request of this process.
    pub(crate) fn mark_as_result(mut self) -> Self {
        self.received = true;
        self
    }

    /// This error as the failure of a request that this process handled. If one of its own requests
    /// ended with it, who failed that one, and whether that one may be repeated, does not hold for
    /// the one handled.
    pub(crate) fn into_handler_failure(self) -> Self {
        if !self.received {
            return self;
        }
        // A time limit that passed on the way is one for every asker on the way.
        let kind = if self.is_timeout() { ErrorKind::Timeout } else { ErrorKind::Application };
        Self::new(kind, self.to_string()).with_source(self)
    }

    pub(crate) fn with_text(self, text: String) -> Self {
        self.change(|inner| inner.text = text)
    }

    pub(crate) fn with_peer(self, peer: impl fmt::Display) -> Self {
        self.change(|inner| inner.peer = Some(peer.to_string()))
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.change(|inner| inner.source = Some(source.into()))
    }

    /// What the last of several attempts ended with. All else that it says holds for all of them.
    pub(crate) fn after_attempts(self, attempts: u32) -> Self {
        let text = format!("no success after {attempts} attempts: {self}");
        let last = self.clone();
        self.change(|inner| {
            inner.text = text;
            inner.source = Some(last.into());
        })
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
            // Others hold it too: a new error that keeps the old one as its cause.
            None => {
                let received = self.received;
                let mut inner = ErrorInner {
                    kind: self.inner.kind,
                    text: self.inner.text.clone(),
                    peer: self.inner.peer.clone(),
                    remote: self.inner.remote,
                    retryable: self.inner.retryable,
                    timeout: self.inner.timeout,
                    source: Some(Box::new(self)),
                };
                change(&mut inner);
                Self { inner: Arc::new(inner), received }
            }
        }
    }

    /// What kind of thing went wrong.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The request was certainly not handled, or whoever handled it said that repeating it does no
    /// harm; and repeating it may succeed. A timeout is neither.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// A time limit passed, here or in what this error is about.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.inner.timeout
    }

    /// The peer reported this error, rather than this process finding it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.inner.remote
    }

    /// Whom the failed operation was addressed to: an endpoint as `spark://name@host:port` or
    /// `spark-client://name`, an environment as `host:port`.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.inner.peer.as_deref()
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.text)
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
        if let Some(source) = &self.inner.source {
            out.field("source", source);
        }
        out.finish_non_exhaustive()
    }
}

impl StdError for RpcError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

/// A message that was refused, and why. The message is in it: nothing is lost by trying to send.
pub struct SendError<R> {
    message: R,
    error: RpcError,
}

impl<R> SendError<R> {
    pub(crate) fn new(message: R, error: RpcError) -> Self {
        Self { message, error }
    }

    /// Why it was refused.
    #[must_use]
    pub fn error(&self) -> &RpcError {
        &self.error
    }

    /// The message, to send it elsewhere or later.
    #[must_use]
    pub fn into_message(self) -> R {
        self.message
    }

    /// Both.
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

impl<R> StdError for SendError<R> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

/// So that `?` works where the message is of no further use.
impl<R> From<SendError<R>> for RpcError {
    fn from(refused: SendError<R>) -> Self {
        refused.error.mark_as_result()
    }
}

//! [`TransportError`], the one error type of this crate, and its [`ErrorKind`].

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Any error that a user's handler, stream manager or bootstrap returns.
///
/// ```
/// use network_common::BoxError;
///
/// let error: BoxError = "no such block".into();
/// assert_eq!(error.to_string(), "no such block");
/// ```
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The category of a [`TransportError`].
///
/// [`TransportMetrics`](crate::TransportMetrics) counts failures by kind.
///
/// ```
/// use network_common::{ErrorKind, TransportConf};
///
/// let error = TransportConf::new("rpc").with("spark.network.timeout", "soon").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting has a value that cannot be used.
    Config,
    /// A text is not an address of the form `host:port`.
    InvalidAddress,
    /// The server cannot listen on its address, or the address does not resolve.
    Bind,
    /// The peer refused the connection, or its name did not resolve.
    Connect,
    /// The connection took longer than its timeout to establish.
    ///
    /// The timeout is `spark.<module>.io.connectionCreationTimeout`, for the TLS handshake
    /// `spark.ssl.rpc.handshakeTimeout`.
    ConnectTimeout,
    /// No connection was attempted, because the last attempt failed within the fast-fail window.
    FastFail,
    /// A bootstrap (authentication, for example) failed.
    Bootstrap,
    /// The TLS handshake failed: the peer does not speak TLS, or a certificate is not trusted.
    Tls,
    /// Either side closed the connection, or the client factory is closed.
    Closed,
    /// The peer has sent no byte for `spark.<module>.io.connectionTimeout` after a request.
    ///
    /// Or the response has waited that long behind a body that this side does not read; or the
    /// peer has not acknowledged or read any bytes for `spark.<module>.io.tcpUserTimeout`.
    Timeout,
    /// The socket or a local file could not be read or written.
    ///
    /// Or the connection was closed, because its peer left bytes unread that the
    /// [`ByteBudget`](crate::ByteBudget) needs.
    Io,
    /// The peer sent bytes that are not this protocol.
    Protocol,
    /// The peer's handler failed; the text is the peer's.
    Remote,
    /// The peer could not serve a chunk; the text is the peer's.
    ChunkFetchFailure,
    /// The peer could not serve a stream; the text is the peer's.
    StreamFailure,
    /// A limit of this side would be exceeded.
    ///
    /// A request was not sent, a response was not received, or a connection was closed.
    Limit,
    /// A fetch of the same chunk is pending on this connection; nothing was sent.
    AlreadyPending,
    /// The connection's state does not allow the operation; nothing was sent.
    ///
    /// The peer is not authenticated yet, or its client id or the filters are already set.
    InvalidState,
}

impl ErrorKind {
    /// Every kind, in the order of the failure counters of [`SideMetrics`](crate::SideMetrics).
    pub(crate) const ALL: [Self; 18] = [
        Self::Config,
        Self::InvalidAddress,
        Self::Bind,
        Self::Connect,
        Self::ConnectTimeout,
        Self::FastFail,
        Self::Bootstrap,
        Self::Tls,
        Self::Closed,
        Self::Timeout,
        Self::Io,
        Self::Protocol,
        Self::Remote,
        Self::ChunkFetchFailure,
        Self::StreamFailure,
        Self::Limit,
        Self::AlreadyPending,
        Self::InvalidState,
    ];
}

/// An error of the transport.
///
/// The text names the peer, the operation and, for limits and timeouts, the setting. It does not
/// repeat the cause, which is the [`source`](Error::source); `{error:#}` prints the error and all
/// its causes, separated by `: `.
///
/// Cloning is cheap. All requests that are pending when a connection ends get the same error.
///
/// ```
/// use network_common::{ErrorKind, PeerAddress};
///
/// let error = "driver:http".parse::<PeerAddress>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidAddress);
/// assert!(!error.is_retryable());
/// assert_eq!(
///     format!("{error:#}"),
///     "'driver:http' is not an address of the form host:port: invalid digit found in string"
/// );
/// ```
#[derive(Clone)]
pub struct TransportError {
    inner: Arc<ErrorInner>,
    /// Beside the shared part: one error ends a connection, and later refuses new requests on it.
    retryable: bool,
}

struct ErrorInner {
    kind: ErrorKind,
    message: String,
    peer: Option<String>,
    source: Option<BoxError>,
}

impl TransportError {
    /// Returns an error that is retryable only if its kind means that there is no connection.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let inner = ErrorInner { kind, message: message.into(), peer: None, source: None };
        let retryable =
            matches!(kind, ErrorKind::Connect | ErrorKind::ConnectTimeout | ErrorKind::FastFail);
        Self { inner: Arc::new(inner), retryable }
    }

    pub(crate) fn with_peer(self, peer: impl fmt::Display) -> Self {
        self.edit(|inner| inner.peer = Some(peer.to_string()))
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.edit(|inner| inner.source = Some(source.into()))
    }

    /// Marks this error as [retryable](Self::is_retryable); clones made before are not changed.
    pub(crate) fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// Changes an error that is still being built; has no effect on one that was cloned.
    fn edit(mut self, change: impl FnOnce(&mut ErrorInner)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            change(inner);
        }
        self
    }

    /// Returns the error of a closed connection, with the text of Spark's
    /// `TransportResponseHandler.channelInactive`.
    pub(crate) fn closed(peer: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Closed, format!("Connection from {peer} closed")).with_peer(peer)
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
    /// Handlers of this crate report a text only, so an error of the peer's handler is never
    /// retryable here; `rpc-core` adds a mark for it.
    ///
    /// | kind | retryable |
    /// |---|---|
    /// | [`Connect`](ErrorKind::Connect), [`ConnectTimeout`](ErrorKind::ConnectTimeout), [`FastFail`](ErrorKind::FastFail) | yes: there was no connection to send over |
    /// | [`Bootstrap`](ErrorKind::Bootstrap) | if the connection was cut or timed out meanwhile |
    /// | [`AlreadyPending`](ErrorKind::AlreadyPending) | yes, when the first fetch has ended |
    /// | [`Limit`](ErrorKind::Limit) | if the write queue was full; not if a request or a response is too large |
    /// | [`Remote`](ErrorKind::Remote) | if the peer's [`ByteBudget`](crate::ByteBudget) did not allow the request for now |
    /// | [`Closed`](ErrorKind::Closed), [`Timeout`](ErrorKind::Timeout), [`Io`](ErrorKind::Io), [`Protocol`](ErrorKind::Protocol) | if the connection ended before the request was made; not if the request was pending |
    /// | others | no |
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Returns whether a timeout caused the error.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        match self.kind() {
            ErrorKind::ConnectTimeout | ErrorKind::Timeout => true,
            ErrorKind::Bootstrap => self
                .source()
                .and_then(|cause| cause.downcast_ref::<Self>())
                .is_some_and(Self::is_timeout),
            _ => false,
        }
    }

    /// Returns whether the peer reported the error, as opposed to this side or the network.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::Remote | ErrorKind::ChunkFetchFailure | ErrorKind::StreamFailure
        )
    }

    /// Returns the peer that the error concerns, as `host:port`.
    #[must_use]
    pub fn peer(&self) -> Option<&str> {
        self.inner.peer.as_deref()
    }
}

/// Writes all causes of `error`, each after a colon, if `f` has the form `{:#}`.
///
/// # Errors
/// The error of `f`.
pub fn write_causes(
    error: &(dyn std::error::Error + 'static),
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let mut next = error.source().filter(|_| f.alternate());
    while let Some(cause) = next {
        write!(f, ": {cause}")?;
        next = cause.source();
    }
    Ok(())
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        write_causes(self, f)
    }
}

impl fmt::Debug for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportError")
            .field("kind", &self.inner.kind)
            .field("message", &self.inner.message)
            .field("peer", &self.inner.peer)
            .field("retryable", &self.retryable)
            .field("source", &self.inner.source)
            .finish()
    }
}

impl Error for TransportError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// A stream body that is read through [`tokio::io::AsyncRead`] reports its failure as an I/O error.
impl From<TransportError> for std::io::Error {
    fn from(error: TransportError) -> Self {
        let kind = if error.is_timeout() {
            std::io::ErrorKind::TimedOut
        } else if error.kind() == ErrorKind::Closed {
            std::io::ErrorKind::ConnectionAborted
        } else {
            std::io::ErrorKind::Other
        };
        Self::new(kind, error)
    }
}

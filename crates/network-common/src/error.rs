//! The one error type of this crate, made for the person who must act on it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Any error a user's handler, stream manager or bootstrap may return.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What went wrong, coarsely: enough to decide what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting has a value that cannot be used.
    Config,
    /// The server could not listen on its address.
    Bind,
    /// The peer refused the connection, or its name did not resolve.
    Connect,
    /// The connection was not made within `spark.<module>.io.connectionCreationTimeout`, or TLS not
    /// agreed on within `spark.ssl.rpc.handshakeTimeout`.
    ConnectTimeout,
    /// Not even tried: this address failed within the fast-fail window.
    FastFail,
    /// A client bootstrap (authentication, say) failed.
    Bootstrap,
    /// TLS could not be agreed on: the peer speaks none, or one of the two does not trust the
    /// other.
    Tls,
    /// The connection was closed by either side.
    Closed,
    /// Nothing moved for `spark.<module>.io.connectionTimeout` while requests were outstanding.
    Timeout,
    /// Reading or writing the socket or a local file failed.
    Io,
    /// The peer sent bytes that are not this protocol.
    Protocol,
    /// The peer's handler failed; the text is the peer's.
    Remote,
    /// The peer could not serve a chunk; the text is the peer's.
    ChunkFetchFailure,
    /// The peer could not serve a stream; the text is the peer's.
    StreamFailure,
    /// A local limit would have been exceeded; nothing was sent.
    Limit,
    /// The request is not allowed in this state; nothing was sent.
    Refused,
}

impl ErrorKind {
    /// Every kind, in the order of [`TransportMetrics`](crate::TransportMetrics)' failure counters.
    pub const ALL: [Self; 16] = [
        Self::Config,
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
        Self::Refused,
    ];
}

/// An error of the transport. Cheap to clone: all requests that one event ends share it.
///
/// The text names the peer, the operation and, for limits and timeouts, the setting; the cause is
/// kept in [`source`](Error::source).
#[derive(Clone)]
pub struct TransportError(Arc<ErrorInner>);

struct ErrorInner {
    kind: ErrorKind,
    message: String,
    peer: Option<String>,
    source: Option<BoxError>,
}

impl TransportError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Arc::new(ErrorInner { kind, message: message.into(), peer: None, source: None }))
    }

    pub(crate) fn with_peer(self, peer: impl fmt::Display) -> Self {
        self.edit(|inner| inner.peer = Some(peer.to_string()))
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        self.edit(|inner| inner.source = Some(source.into()))
    }

    /// Only called while an error is being built, when nobody else holds it.
    fn edit(mut self, change: impl FnOnce(&mut ErrorInner)) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            change(inner);
        }
        self
    }

    /// "Connection from <peer> closed": Spark's text (transport 6).
    pub(crate) fn closed(peer: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Closed, format!("Connection from {peer} closed")).with_peer(peer)
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same request may succeed later, on a new connection or with less load.
    ///
    /// It says nothing about side effects: when a connection closes, the peer may have done the
    /// work.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Connect
                | ErrorKind::ConnectTimeout
                | ErrorKind::FastFail
                | ErrorKind::Closed
                | ErrorKind::Timeout
                | ErrorKind::Io
                | ErrorKind::Limit
        )
    }

    /// Whether a time limit caused it.
    pub fn is_timeout(&self) -> bool {
        matches!(self.0.kind, ErrorKind::ConnectTimeout | ErrorKind::Timeout)
    }

    /// Whether the peer reported it (as opposed to this side or the network).
    pub fn is_remote(&self) -> bool {
        matches!(
            self.0.kind,
            ErrorKind::Remote | ErrorKind::ChunkFetchFailure | ErrorKind::StreamFailure
        )
    }

    /// The peer it concerns, as `host:port`.
    pub fn peer(&self) -> Option<&str> {
        self.0.peer.as_deref()
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportError")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("peer", &self.0.peer)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for TransportError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// A stream body read through [`tokio::io::AsyncRead`] reports its failure as an I/O error.
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

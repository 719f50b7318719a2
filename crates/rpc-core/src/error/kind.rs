//! [`ErrorKind`], the category of an error.

/// The category of an [`RpcError`](super::RpcError).
///
/// `docs/errors.md` in the repository lists every situation with its kind.
///
/// ```
/// use rpc_core::{ErrorKind, RpcConf};
///
/// let error = RpcConf::new().with("spark.rpc.askTimeout", "soon").unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Config);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A setting, a name or a combination of options cannot work; the text names it.
    Config,
    /// A text is not an address of the expected form.
    InvalidAddress,
    /// The environment cannot listen on its address.
    Bind,
    /// No endpoint of that name is registered.
    EndpointNotFound,
    /// An endpoint of that name is already registered.
    EndpointExists,
    /// The endpoint exists, but receives other messages than the ref would send.
    ServiceMismatch,
    /// The endpoint, its environment or the runtime has stopped.
    Stopped,
    /// No response arrived within the timeout. The request may have been executed.
    Timeout,
    /// The caller aborted the ask with an [`AbortHandle`](crate::AbortHandle).
    ///
    /// The request may have been executed.
    Aborted,
    /// Waiting would block what is waited for: the endpoint itself, or a thread of the runtime.
    Deadlock,
    /// The endpoint dropped the request without a reply.
    NoReply,
    /// A handler or a decoder panicked.
    Panic,
    /// The endpoint failed the request with an error of its own.
    Application,
    /// The peer rejected a message before an endpoint received it.
    ///
    /// For example: an unknown method, bytes that cannot be decoded, another protocol version.
    Rejected,
    /// The peer offers no such file for download, or cannot read it.
    FileUnavailable,
    /// The peer cannot be reached, or the connection was lost.
    Network,
    /// Authentication or the TLS handshake failed; nothing was sent.
    ///
    /// Secrets or certificates differ, or one side requires security that the other does not offer.
    Authentication,
    /// A queue is full, a message is too large, or another limit is reached; the text names it.
    Limit,
    /// The bytes of a message do not match its schema.
    Decode,
    /// The message has no schema, so it cannot leave the process.
    LocalOnly,
}

//! Why a handshake fails. The texts are for this side; the peer learns only that it failed.

/// The reason why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The message is not of the protocol that is spoken here.
    #[error("not an authentication message: {0}")]
    UnexpectedMessage(String),
    /// The message is of the right kind, but broken.
    #[error("malformed authentication message: {0}")]
    Malformed(String),
    /// No secret is known for this application.
    #[error("no secret is known for the application '{0}'")]
    UnknownApp(String),
    /// The message names another application than the one whose secret is used.
    #[error("the message is for the application '{got}', but this is '{expected}'")]
    AppIdMismatch {
        /// The application whose secret is used.
        expected: String,
        /// The one in the message.
        got: String,
    },
    /// The peer knows another secret, or the message was changed on its way.
    #[error("Mismatched response: {0}")]
    VerificationFailed(&'static str),
    /// The peers ask for things that exclude each other.
    #[error("{0}")]
    NegotiationFailed(String),
    /// A cryptographic operation failed on this side.
    #[error("{0} failed")]
    Crypto(&'static str),
}

//! The reasons why a handshake or an encrypted connection fails.
//!
//! These errors stay on this side: the peer receives a fixed text only (see `rpc_handler`).

use crate::peer_text::{peer_name, peer_text};

/// The reason why authentication or decryption failed.
///
/// After a failed handshake it is the [`source`](std::error::Error::source) of a
/// [`TransportError`](crate::TransportError) of kind [`Bootstrap`](crate::ErrorKind::Bootstrap).
///
/// ```
/// use std::error::Error;
/// use network_common::TransportError;
/// use network_common::auth::AuthError;
///
/// /// Returns whether the peer has another secret than this process.
/// fn is_wrong_secret(error: &TransportError) -> bool {
///     let cause = error.source().and_then(|cause| cause.downcast_ref::<AuthError>());
///     matches!(cause, Some(AuthError::VerificationFailed(_)))
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The message does not belong to a protocol that this side accepts.
    #[error("not an authentication message: {0}")]
    UnexpectedMessage(String),
    /// The message has the right type, but its content is invalid.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// This side has no secret for the application.
    #[error("no secret is known for the application '{0}'")]
    UnknownApp(String),
    /// The message names another application than the one whose secret is used.
    #[error("the message is for the application '{got}', expected '{expected}'")]
    AppIdMismatch {
        /// The application whose secret is used.
        expected: String,
        /// The application in the message.
        got: String,
    },
    /// The peer has another secret, or the bytes were changed on the way.
    #[error("verification failed: {0}")]
    VerificationFailed(&'static str),
    /// The two peers have no protocol, cipher or parameter in common.
    #[error("{0}")]
    NegotiationFailed(String),
    /// A cryptographic operation failed on this side.
    #[error("cryptographic operation failed: {0}")]
    Crypto(&'static str),
}

impl AuthError {
    /// Cuts and escapes the texts that the peer chose; called where a handshake has failed.
    pub(super) fn escape_peer_text(self) -> Self {
        match self {
            Self::UnexpectedMessage(text) => Self::UnexpectedMessage(peer_text(text)),
            Self::Malformed(text) => Self::Malformed(peer_text(text)),
            Self::UnknownApp(app_id) => Self::UnknownApp(peer_name(app_id)),
            Self::AppIdMismatch { expected, got } => {
                Self::AppIdMismatch { expected: peer_name(expected), got: peer_name(got) }
            }
            Self::NegotiationFailed(text) => Self::NegotiationFailed(peer_text(text)),
            Self::VerificationFailed(_) | Self::Crypto(_) => self,
        }
    }

    /// Returns the error of a proof that the peer's secret does not explain.
    pub(super) fn mismatched_secret() -> Self {
        Self::VerificationFailed("the peer has another secret, or the message was changed")
    }
}

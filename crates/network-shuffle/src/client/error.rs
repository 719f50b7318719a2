//! [`BlockError`], the error of the block client.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use network_common::{PeerAddress, TransportError};

/// The operation of a fetch, for error texts.
pub(super) const FETCH: &str = "fetching blocks";

/// An error of an [`ExternalBlockStoreClient`](super::ExternalBlockStoreClient).
///
/// The text names the operation, the peer and the setting of a timeout. It does not repeat the
/// cause, which is the [`source`](Error::source); `{error:#}` prints the error and all its causes.
/// Cloning is cheap: all blocks that fail together get the same error.
///
/// ```
/// use network_shuffle::client::BlockError;
///
/// /// Returns whether another source of the block may have it.
/// fn is_worth_another_source(error: &BlockError) -> bool {
///     !matches!(error, BlockError::InvalidRequest { .. } | BlockError::File { .. })
/// }
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum BlockError {
    /// There was no connection, the connection ended, or the peer reported a failure.
    #[non_exhaustive]
    Transport {
        /// The operation that the client tried.
        operation: &'static str,
        /// The peer.
        address: PeerAddress,
        /// The cause.
        source: TransportError,
    },
    /// The peer's answer is not one that the request has.
    #[non_exhaustive]
    UnexpectedAnswer {
        /// The operation that the client tried.
        operation: &'static str,
        /// The peer.
        address: PeerAddress,
        /// The reason why the answer is wrong.
        problem: String,
    },
    /// The peer did not answer within the timeout.
    #[non_exhaustive]
    Timeout {
        /// The operation that the client tried.
        operation: &'static str,
        /// The peer.
        address: PeerAddress,
        /// The timeout.
        timeout: Duration,
        /// The name of the timeout's setting.
        setting: &'static str,
    },
    /// A file for a block cannot be created or written.
    #[non_exhaustive]
    File {
        /// The directory of the file.
        directory: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The blocks cannot be requested together, or not at all.
    #[non_exhaustive]
    InvalidRequest {
        /// The reason why the request is wrong.
        reason: &'static str,
    },
    /// The runtime that fetched the blocks has stopped.
    RuntimeStopped,
}

impl BlockError {
    pub(super) fn transport(
        operation: &'static str,
        address: &PeerAddress,
    ) -> impl FnOnce(TransportError) -> Self {
        move |source| Self::Transport { operation, address: address.clone(), source }
    }

    pub(super) fn unexpected(
        operation: &'static str,
        address: &PeerAddress,
        problem: impl Into<String>,
    ) -> Self {
        Self::UnexpectedAnswer { operation, address: address.clone(), problem: problem.into() }
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport { operation, address, .. } => {
                write!(f, "{operation} at {address} failed")?;
            }
            Self::UnexpectedAnswer { operation, address, problem } => {
                write!(f, "{operation} at {address} failed: {problem}")?;
            }
            Self::Timeout { operation, address, timeout, setting } => {
                write!(f, "{operation} at {address} took longer than {timeout:?} ({setting})")?;
            }
            Self::File { directory, .. } => {
                write!(f, "a fetched block cannot be written to {}", directory.display())?;
            }
            Self::InvalidRequest { reason } => write!(f, "invalid request of blocks: {reason}")?,
            Self::RuntimeStopped => f.write_str("the runtime that fetched the blocks stopped")?,
        }
        network_common::write_causes(self, f)
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Transport { source, .. } => Some(source),
            Self::File { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

//! [`BlockLocation`]: from where blocks are fetched.

use std::fmt;

use network_common::PeerAddress;

/// The executor that wrote blocks, and the address that serves them.
///
/// The address is that of a shuffle service or of the executor itself. Corresponds to Spark's
/// `BlockManagerId`.
///
/// ```
/// use network_shuffle::client::BlockLocation;
///
/// let location = BlockLocation::new(("worker-1", 7337), "4");
/// assert_eq!(location.to_string(), "executor 4 at worker-1:7337");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct BlockLocation {
    /// The address that serves the blocks.
    pub address: PeerAddress,
    /// The id of the executor that wrote the blocks.
    pub exec_id: String,
}

impl BlockLocation {
    /// Returns the location of the blocks of an executor.
    #[must_use]
    pub fn new(address: impl Into<PeerAddress>, exec_id: impl Into<String>) -> Self {
        Self { address: address.into(), exec_id: exec_id.into() }
    }
}

impl fmt::Display for BlockLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "executor {} at {}", self.exec_id, self.address)
    }
}

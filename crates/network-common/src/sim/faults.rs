//! [`FaultCounts`]: how often each kind of fault has affected a connection.

/// Counts how often each kind of fault has affected a connection.
///
/// A fault that is requested but affects no connection is not counted. A test that depends on a
/// fault can therefore assert that it has occurred.
///
/// ```
/// use network_common::sim::Simulation;
///
/// let simulation = Simulation::new(1);
/// simulation.reset_connections([10, 0, 0, 1], [10, 0, 0, 2]);
/// assert_eq!(simulation.fault_counts().resets, 0, "there was no connection");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCounts {
    /// Connections that `reset_connections` ended.
    pub resets: u64,
    /// Reads that found bytes which a partition held back.
    pub held_reads: u64,
    /// Connection attempts that waited for the end of a partition or the restart of a host.
    pub held_connects: u64,
    /// Connections that a crash left half-open.
    pub half_open: u64,
    /// Connections of an earlier run of a host that were reset after its restart.
    pub stale_resets: u64,
    /// Reads that waited because their host paused.
    pub paused_reads: u64,
    /// Reads that waited for the read rate of their host.
    pub slow_reads: u64,
    /// Connections that were reset because one end closed with unread bytes, or got bytes later.
    pub unread_resets: u64,
    /// Writes that were accepted in part only.
    pub short_writes: u64,
    /// Connection attempts that were refused because nothing listened.
    pub refused_connects: u64,
    /// Host names that did not resolve.
    pub failed_lookups: u64,
}

impl FaultCounts {
    /// Returns the counts with the names of their fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("resets", self.resets),
            ("held_reads", self.held_reads),
            ("held_connects", self.held_connects),
            ("half_open", self.half_open),
            ("stale_resets", self.stale_resets),
            ("paused_reads", self.paused_reads),
            ("slow_reads", self.slow_reads),
            ("unread_resets", self.unread_resets),
            ("short_writes", self.short_writes),
            ("refused_connects", self.refused_connects),
            ("failed_lookups", self.failed_lookups),
        ]
        .into_iter()
    }
}

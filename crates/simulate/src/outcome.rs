//! [`Outcome`]: what one run of a play shows.

use std::collections::BTreeMap;

/// The violations, the trace and the counts of one run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Promises that did not hold.
    pub(crate) violations: Vec<String>,
    pub(crate) trace_hash: u64,
    /// The number of occurrences of each kind of fault and of result.
    pub(crate) counts: Counts,
    pub(crate) timeline: Vec<String>,
}

/// Numbers of events by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts(pub(crate) BTreeMap<String, u64>);

impl Counts {
    pub(crate) fn add(&mut self, name: &str, count: u64) {
        *self.0.entry(name.to_owned()).or_default() += count;
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        other.0.iter().for_each(|(name, count)| self.add(name, *count));
    }
}

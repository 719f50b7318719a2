//! The end of all endpoints.

use std::time::Duration;

use super::{Dispatcher, Registration};
use crate::inbox::{StopCause, StopCounts};
use crate::metrics::EndpointReport;
use crate::wire::ENDPOINT_VERIFIER;

/// How long loops that were told to end at once may take for that.
const ABORT: Duration = Duration::from_secs(1);

impl Dispatcher {
    /// Refuses new endpoints and messages, and has every endpoint stop after those it has accepted.
    pub(crate) fn begin_stop(&self) -> Stopping {
        let mut state = self.state.write();
        state.stopped = true;
        let leaving = std::mem::take(&mut state.leaving);
        let entries: Vec<_> = state.endpoints.values().cloned().chain(leaving).collect();
        drop(state);
        let before = entries.iter().map(|entry| {
            let before = entry.inbox.stop_counts();
            entry.inbox.stop(StopCause::Env);
            before
        });
        Stopping { before: before.collect(), entries }
    }

    /// Waits until the last `on_stop` has run, or until `limit` has passed: then what is left is
    /// abandoned, and its askers fail. Tells what became of each endpoint, by name.
    pub(crate) async fn finish_stop(
        &self,
        stopping: Stopping,
        limit: Duration,
    ) -> Vec<EndpointReport> {
        let Stopping { entries, before } = stopping;
        self.loops.close();
        if tokio::time::timeout(limit, self.loops.wait()).await.is_err() {
            entries.iter().for_each(|entry| entry.task.abort());
            // One whose thread is blocked does not come back.
            let _ = tokio::time::timeout(ABORT, self.loops.wait()).await;
        }
        self.state.write().endpoints.clear();
        let mut reports: Vec<_> = entries
            .iter()
            .zip(before)
            .map(|(entry, before)| {
                let after = entry.inbox.stop_counts();
                EndpointReport {
                    name: entry.inbox.snapshot().name,
                    finished: after.handled - before.handled,
                    refused: after.rejected_after_stop - before.rejected_after_stop,
                    abandoned: after.held,
                    stopped: after.has_stopped,
                }
            })
            .filter(|report| report.name != ENDPOINT_VERIFIER)
            .collect();
        reports.sort_by(|one, other| one.name.cmp(&other.name));
        reports
    }
}

/// Endpoints that have been told to stop.
pub(crate) struct Stopping {
    entries: Vec<Registration>,
    /// What had become of their messages until then.
    before: Vec<StopCounts>,
}

//! Stops all endpoints of an environment, and reports what became of their messages.

use std::time::Duration;

use tokio::task::AbortHandle;

use super::{Dispatcher, Registration};
use crate::inbox::{StopCause, StopCounts};
use crate::metrics::EndpointReport;
use crate::wire::ENDPOINT_VERIFIER;

/// After the shutdown timeout, aborted loops have 1 s to end.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

impl Dispatcher {
    /// Rejects new endpoints and messages, and stops every endpoint after its accepted messages.
    pub(crate) fn begin_stop(&self) -> StoppingEndpoints {
        let mut state = self.state.write();
        state.is_stopped = true;
        let stopping = std::mem::take(&mut state.stopping);
        let entries: Vec<_> = state.endpoints.values().cloned().chain(stopping).collect();
        drop(state);
        let counts_before = entries.iter().map(|entry| {
            let before = entry.inbox.stop_counts();
            entry.inbox.stop(StopCause::Env);
            before
        });
        StoppingEndpoints { counts_before: counts_before.collect(), entries }
    }

    /// Waits until the last `on_stop` has run, for at most `timeout`, then aborts the other loops.
    ///
    /// The pending asks of aborted loops fail. Returns a report on each endpoint, sorted by name.
    pub(crate) async fn finish_stop(
        &self,
        stopping: StoppingEndpoints,
        timeout: Duration,
    ) -> Vec<EndpointReport> {
        let StoppingEndpoints { entries, counts_before } = stopping;
        self.loops.close();
        if tokio::time::timeout(timeout, self.loops.wait()).await.is_err() {
            entries.iter().filter_map(|entry| entry.task.get()).for_each(AbortHandle::abort);
            // A loop whose thread is blocked cannot be aborted.
            let _ = tokio::time::timeout(ABORT_TIMEOUT, self.loops.wait()).await;
        }
        let registered = std::mem::take(&mut self.state.write().endpoints);
        drop(registered);
        let mut reports: Vec<_> = entries
            .iter()
            .zip(counts_before)
            .map(|(entry, before)| {
                let after = entry.inbox.stop_counts();
                EndpointReport {
                    name: entry.inbox.snapshot().name,
                    finished: after.handled - before.handled,
                    rejected: after.rejected_after_stop - before.rejected_after_stop,
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

/// Endpoints between [`Dispatcher::begin_stop`] and [`Dispatcher::finish_stop`].
pub(crate) struct StoppingEndpoints {
    entries: Vec<Registration>,
    /// The counts of each endpoint before it was stopped.
    counts_before: Vec<StopCounts>,
}

//! The end of an environment.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{EnvInner, RpcEnv};
use crate::ask::ActorId;
use crate::dispatcher::Stopping;
use crate::metrics::ShutdownReport;

/// How long a shutdown waits, after the endpoints have stopped, for messages that wait for a
/// connection or for credit, then for answers that are still being written, and then for the
/// connections that it made to end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

impl RpcEnv {
    /// Stops all endpoints, waits until every `on_stop` has run, and closes all connections.
    ///
    /// New messages are refused at once (`rpc 4`, `rpc 6`); those that were accepted are handled,
    /// then each endpoint's `on_stop` runs. What `spark.rpc.shutdownTimeout` does not suffice for
    /// is abandoned: its askers fail. Then what is still to be sent goes out, with answers and with
    /// the connections' own queues up to 5 seconds each; when the future is ready the process may
    /// end. The report tells which endpoint finished, refused and abandoned how much.
    ///
    /// Begins when called, not when polled; the future waits for the end. May be called many times,
    /// then all wait for the same end. An endpoint that shuts its own environment down gets a
    /// report at once that says that the shutdown is [not complete](ShutdownReport::complete): else
    /// it would wait for itself.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting, not the shutdown.
    pub fn shutdown(&self) -> impl Future<Output = ShutdownReport> + Send + 'static + use<> {
        if !self.inner.stopping.swap(true, Ordering::AcqRel) {
            let stopping = self.inner.dispatcher.begin_stop();
            let ending =
                ShutdownTask { inner: Arc::clone(&self.inner), report: ShutdownReport::default() };
            self.inner.runtime.spawn(ending.run(stopping));
        }
        self.terminated()
    }

    /// Waits until [`shutdown`](Self::shutdown), called by whomever, has come to its end. Inside an
    /// endpoint of this environment it does not wait.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub fn await_termination(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let terminated = self.terminated();
        async move { drop(terminated.await) }
    }

    fn terminated(&self) -> impl Future<Output = ShutdownReport> + Send + 'static + use<> {
        let (env, mut terminated) = (ActorId::of(&self.inner), self.inner.terminated.subscribe());
        async move {
            if env.is_current() {
                return ShutdownReport::default();
            }
            let report = terminated.wait_for(Option::is_some).await.map(|report| report.clone());
            // It fails only if the environment is gone, which is an end too.
            report.ok().flatten().unwrap_or_default()
        }
    }
}

/// A shutdown under way. It ends also when the runtime dies with it, and everything it would have
/// stopped.
struct ShutdownTask {
    inner: Arc<EnvInner>,
    report: ShutdownReport,
}

impl ShutdownTask {
    async fn run(mut self, stopping: Stopping) {
        let (inner, begun) = (&self.inner, Instant::now());
        // First, so that what an on_stop sends still goes out, and the connections' end is told to
        // nobody.
        self.report.endpoints =
            inner.dispatcher.finish_stop(stopping, inner.shutdown_timeout).await;
        self.report.unsent = inner.peers.stop(FLUSH_TIMEOUT).await;
        let server = inner.server.lock().take();
        if let Some(server) = server {
            server.close(FLUSH_TIMEOUT).await;
        }
        // Those that this environment made: they are closing, and what the runtime's end found
        // unwritten would be lost.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, inner.connections.closed()).await;
        inner.downloads.close();
        self.report.duration = begun.elapsed();
        self.report.is_complete = true;
    }
}

impl Drop for ShutdownTask {
    fn drop(&mut self) {
        let report = std::mem::take(&mut self.report);
        if report.is_clean() {
            tracing::debug!(env = %self.inner.name, ?report, "environment has shut down");
        } else {
            tracing::warn!(env = %self.inner.name, ?report, "environment has shut down and abandoned messages");
        }
        self.inner.terminated.send_replace(Some(report));
    }
}

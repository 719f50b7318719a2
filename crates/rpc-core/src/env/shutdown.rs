//! Shutdown of an environment.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{EnvInner, RpcEnv};
use crate::ask::ActorId;
use crate::dispatcher::StoppingEndpoints;
use crate::metrics::ShutdownReport;

/// The time that each step of a shutdown may take once the endpoints have stopped.
///
/// The steps are: sending queued messages, writing pending responses, closing the connections.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

impl RpcEnv {
    /// Stops all endpoints, sends what is queued, and closes all connections.
    ///
    /// New messages are rejected at once. Accepted messages are handled, then each endpoint's
    /// `on_stop` runs; what is not done within `spark.rpc.shutdownTimeout` is abandoned, and its
    /// callers get an error. Then queued messages are sent, pending responses are written and the
    /// connections are closed, with at most 5 seconds for each of the three steps. When the future
    /// completes, the process may exit. The report contains the counts of every endpoint.
    ///
    /// The shutdown begins with the call, not with the first poll. Several callers get the same
    /// report. Inside an endpoint of this environment the future completes at once, with a report
    /// that is not [complete](ShutdownReport::is_complete), because the endpoint would wait for
    /// itself.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), rpc_core::RpcError> {
    /// # let env = rpc_core::RpcEnv::builder("doc").client_mode().start().await?;
    /// let report = env.shutdown().await;
    /// for endpoint in report.endpoints.iter().filter(|endpoint| endpoint.abandoned > 0) {
    ///     eprintln!("{} abandoned {} messages", endpoint.name, endpoint.abandoned);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the shutdown.
    pub fn shutdown(&self) -> impl Future<Output = ShutdownReport> + Send + 'static + use<> {
        if !self.inner.stopping.swap(true, Ordering::AcqRel) {
            let stopping = self.inner.dispatcher.begin_stop();
            let task =
                ShutdownTask { inner: Arc::clone(&self.inner), report: ShutdownReport::default() };
            self.inner.runtime.spawn(task.run(stopping));
        }
        self.terminated()
    }

    /// Waits until a [`shutdown`](Self::shutdown) has finished, whoever called it.
    ///
    /// Inside an endpoint of this environment the future completes at once.
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
            if env.is_current_env() {
                return ShutdownReport::default();
            }
            let report = terminated.wait_for(Option::is_some).await.map(|report| report.clone());
            // An error means that the environment was dropped, so it has ended, too.
            report.ok().flatten().unwrap_or_default()
        }
    }
}

/// A running shutdown.
///
/// Its destructor reports the end, so callers do not wait for a runtime that has stopped.
struct ShutdownTask {
    inner: Arc<EnvInner>,
    report: ShutdownReport,
}

impl ShutdownTask {
    async fn run(mut self, stopping: StoppingEndpoints) {
        let (inner, started) = (&self.inner, Instant::now());
        // First, so that messages sent by `on_stop` are still delivered, and no endpoint receives
        // the end of the connections.
        self.report.endpoints =
            inner.dispatcher.finish_stop(stopping, inner.shutdown_timeout).await;
        self.report.unsent = inner.peers.stop(FLUSH_TIMEOUT).await;
        let server = inner.server.lock().take();
        if let Some(server) = server {
            server.close(FLUSH_TIMEOUT).await;
        }
        // Without the wait, output of the connections to peers would be lost if the runtime ended.
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, inner.connections.closed()).await;
        #[cfg(feature = "files")]
        inner.downloads.close();
        self.report.duration = started.elapsed();
        self.report.is_complete = true;
    }
}

impl Drop for ShutdownTask {
    fn drop(&mut self) {
        let report = std::mem::take(&mut self.report);
        if report.is_clean() {
            tracing::debug!(env = %self.inner.name, ?report, "environment has shut down");
        } else {
            tracing::warn!(
                env = %self.inner.name,
                ?report,
                "environment has shut down and abandoned messages"
            );
        }
        self.inner.terminated.send_replace(Some(report));
    }
}

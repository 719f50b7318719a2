//! The result of a shutdown.

use std::time::Duration;

/// The result of a shutdown, from [`RpcEnv::shutdown`](crate::RpcEnv::shutdown).
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), rpc_core::RpcError> {
/// # let env = rpc_core::RpcEnv::builder("doc").client_mode().start().await?;
/// let report = env.shutdown().await;
/// assert!(report.is_clean(), "{report:?}");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// The endpoints that were registered when the shutdown began, by name.
    pub endpoints: Vec<EndpointReport>,
    /// The number of messages to other environments that were not sent.
    pub unsent: u64,
    /// The duration of the shutdown.
    pub duration: Duration,
    /// Is true if the shutdown ran to its end.
    ///
    /// False if the runtime ended before, or if an endpoint of the environment awaited it.
    pub is_complete: bool,
}

impl ShutdownReport {
    /// Returns whether nothing was lost.
    ///
    /// True if every accepted message was handled or sent, and every `on_stop` has run.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.is_complete
            && self.unsent == 0
            && self.endpoints.iter().all(|endpoint| endpoint.stopped && endpoint.abandoned == 0)
    }
}

/// The result of a shutdown for one endpoint.
///
/// ```
/// use rpc_core::EndpointReport;
///
/// fn describe(endpoint: &EndpointReport) -> String {
///     format!("{}: {} messages abandoned", endpoint.name, endpoint.abandoned)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointReport {
    /// The name under which it was registered.
    pub name: String,
    /// The number of messages that were handled after the shutdown had begun.
    pub finished: u64,
    /// The number of messages that were rejected because the shutdown had begun.
    pub rejected: u64,
    /// The number of messages that were queued or active when the time had elapsed.
    ///
    /// Their callers got an error.
    pub abandoned: u64,
    /// Is true if `on_stop` has returned.
    pub stopped: bool,
}

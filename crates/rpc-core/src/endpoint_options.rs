//! How an endpoint is to be run.

/// How an endpoint is to be run, for [`setup_endpoint_with`](crate::RpcEnv::setup_endpoint_with).
///
/// ```
/// use rpc_core::EndpointOptions;
///
/// let options = EndpointOptions::new().isolated(4).connection_events(false);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct EndpointOptions {
    pub(crate) isolated: Option<usize>,
    pub(crate) connection_events: bool,
}

impl EndpointOptions {
    /// What [`setup_endpoint`](crate::RpcEnv::setup_endpoint) does: on the environment's runtime, with all events.
    pub fn new() -> Self {
        Self { isolated: None, connection_events: true }
    }

    /// Run the endpoint on `threads` threads of its own, named `dispatcher-` and the endpoint's name: all of its
    /// functions may block there, and are not held up by others that do (`rpc 2`).
    ///
    /// An [`RpcEndpoint`](crate::RpcEndpoint) can block in as many `receive`s at a time as there are threads; a
    /// [`ThreadSafeRpcEndpoint`](crate::ThreadSafeRpcEndpoint) takes exactly 1. What they spawn with `tokio::spawn`
    /// runs on the environment's runtime. The threads end after `on_stop`.
    pub fn isolated(mut self, threads: usize) -> Self {
        self.isolated = Some(threads);
        self
    }

    /// Whether the endpoint is told of connections (`on_connected`, `on_disconnected`, `on_network_error`,
    /// `on_undelivered`); it is by default.
    ///
    /// An event goes into the inbox of every endpoint that is told, so where endpoints come by the thousand, such as
    /// one for each task or session, they should not be.
    pub fn connection_events(mut self, told: bool) -> Self {
        self.connection_events = told;
        self
    }
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self::new()
    }
}

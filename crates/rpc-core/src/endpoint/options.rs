//! The options of an endpoint's registration.

use std::sync::Arc;

use crate::limits::{InboxConf, OverflowPolicy, Volume};

/// Options of one endpoint, for [`setup_endpoint_with`](crate::RpcEnv::setup_endpoint_with).
///
/// ```
/// use rpc_core::{EndpointOptions, OverflowPolicy};
///
/// let options = EndpointOptions::new()
///     .isolated(1)
///     .connection_events(false)
///     .max_messages(1000)
///     .overflow(OverflowPolicy::DropOldest);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct EndpointOptions {
    pub(crate) isolated: Option<usize>,
    pub(crate) connection_events: bool,
    max_messages: Option<u64>,
    max_bytes: Option<u64>,
    overflow: OverflowPolicy,
}

impl EndpointOptions {
    /// Returns the defaults, those of [`setup_endpoint`](crate::RpcEnv::setup_endpoint).
    ///
    /// The endpoint runs on the environment's runtime and receives connection events.
    pub fn new() -> Self {
        Self {
            isolated: None,
            connection_events: true,
            max_messages: None,
            max_bytes: None,
            overflow: OverflowPolicy::default(),
        }
    }

    /// Runs the endpoint on `threads` threads of its own, where its handlers may block.
    ///
    /// The threads are named `dispatcher-` and the endpoint's name, and end after `on_stop`. An
    /// [`RpcEndpoint`](crate::RpcEndpoint) can block in as many handlers at a time as it has
    /// threads. A [`ThreadSafeRpcEndpoint`](crate::ThreadSafeRpcEndpoint) needs exactly 1.
    /// `tokio::spawn` inside of a handler spawns on the environment's runtime. The counterpart in
    /// Spark is `IsolatedRpcEndpoint.threadCount`.
    pub fn isolated(mut self, threads: usize) -> Self {
        self.isolated = Some(threads);
        self
    }

    /// Enables or disables connection events; they are enabled by default.
    ///
    /// The events are `on_connected`, `on_disconnected`, `on_network_error` and `on_undelivered`.
    /// Each event is queued in the inbox of every endpoint that receives events. Disable them
    /// where there are thousands of endpoints, such as one per task.
    pub fn connection_events(mut self, enabled: bool) -> Self {
        self.connection_events = enabled;
        self
    }

    /// Sets the most messages in the inbox, instead of `spark.rpc.inbox.maxMessages`.
    ///
    /// At least 1. A message counts until it has been handled.
    pub fn max_messages(mut self, messages: u64) -> Self {
        self.max_messages = Some(messages.max(1));
        self
    }

    /// Sets the most bytes in the inbox, instead of `spark.rpc.inbox.maxBytes`; at least 1.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes.max(1));
        self
    }

    /// Sets what a full inbox does; by default [`OverflowPolicy::Reject`].
    pub fn overflow(mut self, overflow: OverflowPolicy) -> Self {
        self.overflow = overflow;
        self
    }

    /// Returns the limits of the inbox. `conf` has the environment's, and is shared if equal.
    pub(crate) fn inbox(&self, conf: &Arc<InboxConf>) -> Arc<InboxConf> {
        let messages = self.max_messages.unwrap_or(conf.limit.messages);
        let bytes = self.max_bytes.unwrap_or(conf.limit.bytes);
        let own = InboxConf::new(Volume::new(messages, bytes), self.overflow, conf.slow_threshold);
        if own == **conf { Arc::clone(conf) } else { Arc::new(own) }
    }
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self::new()
    }
}

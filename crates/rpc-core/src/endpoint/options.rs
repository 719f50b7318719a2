//! How an endpoint is to be run.

use std::sync::Arc;

use crate::limits::{InboxConf, OverflowPolicy, Volume};

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
    max_messages: Option<u64>,
    max_bytes: Option<u64>,
    overflow: OverflowPolicy,
}

impl EndpointOptions {
    /// What [`setup_endpoint`](crate::RpcEnv::setup_endpoint) does: on the environment's runtime,
    /// with all events.
    pub fn new() -> Self {
        Self {
            isolated: None,
            connection_events: true,
            max_messages: None,
            max_bytes: None,
            overflow: OverflowPolicy::default(),
        }
    }

    /// Run the endpoint on `threads` threads of its own, named `dispatcher-` and the endpoint's
    /// name: all of its functions may block there, and are not held up by others that do (`rpc 2`).
    ///
    /// An [`RpcEndpoint`](crate::RpcEndpoint) can block in as many `receive`s at a time as there
    /// are threads; a [`ThreadSafeRpcEndpoint`](crate::ThreadSafeRpcEndpoint) takes exactly 1. What
    /// they spawn with `tokio::spawn` runs on the environment's runtime. The threads end after
    /// `on_stop`.
    pub fn isolated(mut self, threads: usize) -> Self {
        self.isolated = Some(threads);
        self
    }

    /// Whether the endpoint is told of connections (`on_connected`, `on_disconnected`,
    /// `on_network_error`, `on_undelivered`); it is by default.
    ///
    /// An event goes into the inbox of every endpoint that is told, so where endpoints come by the
    /// thousand, such as one for each task or session, they should not be.
    pub fn connection_events(mut self, told: bool) -> Self {
        self.connection_events = told;
        self
    }

    /// How many messages its inbox holds at most, instead of `spark.rpc.inbox.maxMessages`; at
    /// least 1. One counts until it has been handled.
    pub fn max_messages(mut self, messages: u64) -> Self {
        self.max_messages = Some(messages.max(1));
        self
    }

    /// How many bytes they may have in all, instead of `spark.rpc.inbox.maxBytes`; at least 1.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes.max(1));
        self
    }

    /// What happens to a message that does not fit; [`OverflowPolicy::Reject`] by default.
    pub fn overflow(mut self, overflow: OverflowPolicy) -> Self {
        self.overflow = overflow;
        self
    }

    /// What the inbox goes by, where the environment's is `conf`.
    pub(crate) fn inbox(&self, conf: &Arc<InboxConf>) -> Arc<InboxConf> {
        let messages = self.max_messages.unwrap_or(conf.limit.messages);
        let bytes = self.max_bytes.unwrap_or(conf.limit.bytes);
        let own = InboxConf::new(Volume::new(messages, bytes), self.overflow, conf.slow);
        if own == **conf { Arc::clone(conf) } else { Arc::new(own) }
    }
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self::new()
    }
}

//! The state that all refs of an environment share for their asks, and the limits of pending asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;

use super::DeadlineTimer;
use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::conf::AskConf;
use crate::error::{ErrorKind, RpcError};
use crate::trace::Tracer;

/// Shared by all refs of an environment: settings, timer, tracer, number of pending asks.
pub(crate) struct AskResources {
    pub(crate) conf: AskConf,
    pub(crate) timer: Arc<DeadlineTimer>,
    pub(crate) tracer: Tracer,
    /// The number of pending asks of the environment.
    pub(crate) pending: AtomicUsize,
}

impl AskResources {
    pub(crate) fn new(conf: AskConf, tracer: Tracer, runtime: Handle) -> Arc<Self> {
        let timer = DeadlineTimer::new(runtime);
        Arc::new(Self { conf, timer, tracer, pending: AtomicUsize::new(0) })
    }
}

/// One endpoint as its callers know it.
///
/// All refs of a local endpoint share one with its inbox. A remote ref shares one with its clones.
pub(crate) struct EndpointInfo {
    pub(crate) address: RpcEndpointAddress,
    pub(crate) asks: Arc<AskResources>,
    /// The incarnation of the endpoint's environment, or 0 if it is unknown.
    pub(crate) incarnation: u64,
    /// The peer address of the connection to an environment that does not listen.
    pub(crate) socket: Option<RpcAddress>,
    /// The number of pending asks to this endpoint.
    pending: AtomicUsize,
}

impl EndpointInfo {
    pub(crate) fn new(
        address: RpcEndpointAddress,
        asks: Arc<AskResources>,
        incarnation: u64,
    ) -> Self {
        Self { address, asks, incarnation, socket: None, pending: AtomicUsize::new(0) }
    }

    /// The callee for error texts.
    pub(crate) fn peer(&self) -> &dyn fmt::Display {
        match &self.socket {
            Some(socket) => socket,
            None => &self.address,
        }
    }

    /// Counts one more pending ask.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`] if the endpoint or the environment has as many as its setting allows.
    pub(crate) fn reserve_ask(&self) -> Result<PendingAskGuard<'_>, RpcError> {
        let conf = &self.asks.conf;
        let in_env = self.asks.pending.fetch_add(1, Ordering::Relaxed);
        let to_endpoint = self.pending.fetch_add(1, Ordering::Relaxed);
        let guard = PendingAskGuard(self);
        let (limit, scope, setting) = if to_endpoint >= conf.max_pending_per_endpoint {
            (conf.max_pending_per_endpoint, "to it", "spark.rpc.ask.maxPendingPerEndpoint")
        } else if in_env >= conf.max_pending {
            (conf.max_pending, "of this environment", "spark.rpc.ask.maxPending")
        } else {
            return Ok(guard);
        };
        let text = format!(
            "cannot ask {}: {limit} asks {scope} are already pending, the limit of {setting}",
            self.address
        );
        Err(RpcError::new(ErrorKind::Limit, text).with_peer(&self.address).mark_retryable())
    }

    /// Counts one pending ask less.
    pub(super) fn release_ask(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.asks.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one pending ask until it is dropped or an [`AskFuture`](crate::AskFuture) takes over.
#[must_use]
pub(crate) struct PendingAskGuard<'a>(&'a EndpointInfo);

impl PendingAskGuard<'_> {
    /// Leaves the ask counted. Its future releases it at the end.
    pub(crate) fn transfer_to_future(self) {
        std::mem::forget(self);
    }
}

impl Drop for PendingAskGuard<'_> {
    fn drop(&mut self) {
        self.0.release_ask();
    }
}

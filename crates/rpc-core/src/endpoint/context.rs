//! [`EndpointContext`], which the handlers of an endpoint receive besides the message.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::endpoint::RpcEndpointRef;

/// The surroundings of an endpoint: its own ref and its environment.
///
/// Every handler receives one. Clones are cheap and may be moved to spawned tasks.
///
/// ```
/// # use rpc_core::EndpointContext;
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{HelloMessage, SayHi};
/// fn greet_later(cx: &EndpointContext<HelloMessage>) {
///     let endpoint = cx.self_ref().clone();
///     tokio::spawn(async move { endpoint.send(SayHi { msg: "myself".to_owned() }) });
/// }
/// ```
pub struct EndpointContext<M>(Arc<ContextInner<M>>);

struct ContextInner<M> {
    self_ref: RpcEndpointRef<M>,
    /// The `RpcEnv`, type-erased because `env` is a higher layer; `EndpointContext::env` casts it.
    env: Arc<dyn Any + Send + Sync>,
}

impl<M> EndpointContext<M> {
    pub(crate) fn new(self_ref: RpcEndpointRef<M>, env: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Arc::new(ContextInner { self_ref, env }))
    }

    /// Returns the endpoint's own ref, to send to itself or to pass on.
    ///
    /// Once the endpoint is stopped, which includes its `on_stop`, sends and asks over this ref
    /// fail with [`ErrorKind::Stopped`](crate::ErrorKind::Stopped).
    #[must_use]
    pub fn self_ref(&self) -> &RpcEndpointRef<M> {
        &self.0.self_ref
    }

    pub(crate) fn erased_env(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.0.env
    }
}

impl<M> Clone for EndpointContext<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M> fmt::Debug for EndpointContext<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointContext")
            .field("self_ref", &self.0.self_ref)
            .finish_non_exhaustive()
    }
}

//! What users implement.

mod ask_variants;
mod call_context;
mod endpoint_ref;
mod endpoint_ref_message;
mod inbox_handle;
mod message;
mod options;

pub(crate) use call_context::Caller;
pub use call_context::RpcCallContext;
pub use endpoint_ref::RpcEndpointRef;
pub use endpoint_ref_message::EndpointRef;
pub(crate) use inbox_handle::InboxHandle;
pub(crate) use message::local_only;
pub use message::{IncomingRequest, RpcMessage, RpcRequest};
pub use options::EndpointOptions;

use std::any::Any;
use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use crate::address::RpcAddress;
use crate::error::RpcError;

macro_rules! hooks {
    ($self:ty) => {
        /// Runs once, before any message.
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error). The endpoint stays registered.
        fn on_start(
            self: $self,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Ok(()))
        }

        /// Runs once, alone and after everything else: the messages that were queued when the
        /// endpoint was stopped are handled before. [`self_ref`](EndpointContext::self_ref) is none
        /// by then.
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error).
        fn on_stop(
            self: $self,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Ok(()))
        }

        /// Gets what any of the other functions returned as an error or panicked with. The asker,
        /// if `receive` had not answered it yet, has got it too.
        ///
        /// # Errors
        ///
        /// What this returns is logged, and no more. By default that is `error`.
        fn on_error(
            self: $self,
            error: RpcError,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Err(error))
        }

        /// A connection to or from `remote` was made (`rpc 7`). `remote` is where the peer listens
        /// as soon as it is known, and the peer's socket before that, so one connection may be told
        /// twice.
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error).
        fn on_connected(
            self: $self,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (remote, cx);
            ready(Ok(()))
        }

        /// A connection to or from `remote` has ended (`rpc 7`). Not told of connections that end
        /// because this environment shuts down.
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error).
        fn on_disconnected(
            self: $self,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (remote, cx);
            ready(Ok(()))
        }

        /// A connection to or from `remote` broke with `error` (`rpc 7`);
        /// [`on_disconnected`](Self::on_disconnected) follows.
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error).
        fn on_network_error(
            self: $self,
            error: RpcError,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (error, remote, cx);
            ready(Ok(()))
        }

        /// A message that this environment *sent* to `remote` was refused there: `error` says which
        /// and why. An ask that is refused fails instead.
        ///
        /// While an endpoint is behind, at most 1024 of these wait for it; how many there were in
        /// all is in [`EnvSnapshot::undelivered`](crate::EnvSnapshot::undelivered).
        ///
        /// # Errors
        ///
        /// What it returns goes to [`on_error`](Self::on_error).
        fn on_undelivered(
            self: $self,
            error: RpcError,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (error, remote, cx);
            ready(Ok(()))
        }
    };
}

/// An endpoint that handles one message at a time, in order (`rpc 2`): its state needs no locks.
///
/// A `receive` that waits holds up the messages behind it; where that hurts, move the context to a
/// spawned task and return, or use [`RpcEndpoint`]. A `receive` that *asks its own endpoint* and
/// awaits the answer itself gets [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock). A circle of
/// several endpoints that wait for each other is not noticed and lasts until the timeout.
///
/// Handlers run on the runtime that started the environment and must not block its threads; those
/// of an [isolated](crate::EndpointOptions::isolated) endpoint may.
pub trait ThreadSafeRpcEndpoint: Sized + Send + 'static {
    /// What it receives.
    type Message: RpcMessage;

    /// Handles one message.
    ///
    /// # Errors
    ///
    /// What it returns goes to [`on_error`](Self::on_error), and to the asker if the message's
    /// context was dropped unanswered. The endpoint goes on with the next message; so it does after
    /// a panic, which is treated alike.
    fn receive(
        &mut self,
        message: Self::Message,
        cx: &EndpointContext<Self::Message>,
    ) -> impl Future<Output = Result<(), RpcError>> + Send;

    hooks!(&mut Self);
}

/// An endpoint that handles messages concurrently, once [`on_start`](Self::on_start) has succeeded:
/// while one `receive` waits, others begin. If `on_start` fails, it handles them one at a time
/// (`rpc 2`).
///
/// Messages *begin* in the order of their arrival. They take turns on one task, so work that keeps
/// a processor busy belongs on a spawned task, together with the context.
pub trait RpcEndpoint: Sized + Send + Sync + 'static {
    /// What it receives.
    type Message: RpcMessage;

    /// Handles one message.
    ///
    /// # Errors
    ///
    /// What it returns goes to [`on_error`](Self::on_error), and to the asker if the message's
    /// context was dropped unanswered. A panic is treated alike.
    fn receive(
        &self,
        message: Self::Message,
        cx: &EndpointContext<Self::Message>,
    ) -> impl Future<Output = Result<(), RpcError>> + Send;

    hooks!(&Self);
}

/// What an endpoint's functions are given besides the message. Cheap to clone, for spawned tasks.
pub struct EndpointContext<M>(pub(crate) Arc<ContextInner<M>>);

pub(crate) struct ContextInner<M> {
    self_ref: Option<RpcEndpointRef<M>>,
    /// The `RpcEnv`'s inside, which belongs to a higher floor; `env.rs` casts it back.
    pub(crate) env: Arc<dyn Any + Send + Sync>,
}

impl<M> EndpointContext<M> {
    pub(crate) fn new(self_ref: RpcEndpointRef<M>, env: Arc<dyn Any + Send + Sync>) -> Self {
        Self(Arc::new(ContextInner { self_ref: Some(self_ref), env }))
    }

    /// This, without the endpoint's own ref.
    pub(crate) fn for_stop(&self) -> Self {
        Self(Arc::new(ContextInner { self_ref: None, env: Arc::clone(&self.0.env) }))
    }

    /// The endpoint's own ref: to send to itself, or to give to others. None in `on_stop`.
    #[must_use]
    pub fn self_ref(&self) -> Option<&RpcEndpointRef<M>> {
        self.0.self_ref.as_ref()
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

//! The types that applications implement and hold: endpoints, messages, refs, reply contexts.

mod ask;
mod ask_blocking;
mod ask_retry;
mod call_context;
mod context;
mod endpoint_ref;
mod endpoint_ref_message;
mod inbox_handle;
mod message;
mod options;

pub use ask_retry::RetryingAsk;
pub(crate) use ask_retry::is_transient;
pub(crate) use call_context::Caller;
pub use call_context::RpcCallContext;
pub use context::EndpointContext;
pub use endpoint_ref::RpcEndpointRef;
pub use endpoint_ref_message::EndpointRef;
pub(crate) use inbox_handle::InboxHandle;
pub(crate) use message::local_only_error;
pub use message::{IncomingRequest, RpcMessage, RpcRequest};
pub use options::EndpointOptions;

use std::future::{Future, ready};

use crate::address::RpcAddress;
use crate::error::RpcError;

/// The functions that both kinds of endpoint have, apart from `receive`.
macro_rules! hooks {
    ($self:ty) => {
        /// Runs once, before any message is handled.
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error). The endpoint stays registered.
        fn on_start(
            self: $self,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Ok(()))
        }

        /// Runs once, after all messages that were queued when the endpoint was stopped.
        ///
        /// No other handler runs at the same time. Messages that the endpoint sends to
        /// [itself](EndpointContext::self_ref) fail with
        /// [`ErrorKind::Stopped`](crate::ErrorKind::Stopped).
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error).
        fn on_stop(
            self: $self,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Ok(()))
        }

        /// Receives the errors and panics of all other handlers.
        ///
        /// If `receive` failed before it replied, the caller has received the error, too. The
        /// default returns `error`, so that every failure is logged. To disable that, implement
        /// this function and return `Ok(())`. The counterpart in Spark is `RpcEndpoint.onError`.
        ///
        /// # Errors
        ///
        /// An error is logged: at level DEBUG if the caller of an ask has received the failure of
        /// its handler, and at level ERROR for panics, one-way messages and all other handlers.
        fn on_error(
            self: $self,
            error: RpcError,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = cx;
            ready(Err(error))
        }

        /// Runs when a connection to or from `remote` was established.
        ///
        /// Can run twice for one connection: first with the socket address of the peer, and again
        /// when its advertised address is known. The counterpart in Spark is
        /// `RpcEndpoint.onConnected`.
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error).
        fn on_connected(
            self: $self,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (remote, cx);
            ready(Ok(()))
        }

        /// Runs when a connection to or from `remote` was closed.
        ///
        /// Does not run for connections that the shutdown of this environment closes. The
        /// counterpart in Spark is `RpcEndpoint.onDisconnected`.
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error).
        fn on_disconnected(
            self: $self,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (remote, cx);
            ready(Ok(()))
        }

        /// Runs when a connection to or from `remote` failed with `error`.
        ///
        /// [`on_disconnected`](Self::on_disconnected) follows. The counterpart in Spark is
        /// `RpcEndpoint.onNetworkError`.
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error).
        fn on_network_error(
            self: $self,
            error: RpcError,
            remote: RpcAddress,
            cx: &EndpointContext<Self::Message>,
        ) -> impl Future<Output = Result<(), RpcError>> + Send {
            let _ = (error, remote, cx);
            ready(Ok(()))
        }

        /// Runs when `remote` rejected a one-way message of this environment.
        ///
        /// `error` names the message and the reason. An ask that is rejected fails instead. At most
        /// 1024 of these events are queued per endpoint;
        /// [`EnvSnapshot::undelivered`](crate::EnvSnapshot::undelivered) counts all of them.
        ///
        /// # Errors
        ///
        /// An error is passed to [`on_error`](Self::on_error).
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

/// An endpoint that handles one message at a time, in order, with `&mut self`.
///
/// Its state therefore needs no locks. A handler that awaits delays all later messages. To avoid
/// that, move the [context](RpcCallContext) to a spawned task and return, or implement
/// [`RpcEndpoint`]. The counterpart in Spark is `ThreadSafeRpcEndpoint`.
///
/// A handler that awaits an ask to its own endpoint, or capacity of its own full inbox, fails at
/// once with [`ErrorKind::Deadlock`](crate::ErrorKind::Deadlock). A cycle of several endpoints that await
/// each other is not detected and lasts until the first timeout.
///
/// Handlers run on the runtime that started the environment and must not block its threads. The
/// handlers of an [isolated](crate::EndpointOptions::isolated) endpoint may block.
///
/// ```
/// use rpc_core::{EndpointContext, RpcError, ThreadSafeRpcEndpoint};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// use hello::{Greeting, HelloMessage};
///
/// struct Hello {
///     greeted: usize,
/// }
///
/// impl ThreadSafeRpcEndpoint for Hello {
///     type Message = HelloMessage;
///
///     async fn receive(
///         &mut self,
///         message: HelloMessage,
///         _cx: &EndpointContext<HelloMessage>,
///     ) -> Result<(), RpcError> {
///         match message {
///             HelloMessage::SayHi(hi, context) => {
///                 self.greeted += 1;
///                 context.reply(Greeting { text: format!("hi, {}", hi.msg) })
///             }
///             HelloMessage::SayBye(bye, context) => {
///                 context.reply(Greeting { text: format!("bye, {}", bye.msg) })
///             }
///         }
///     }
/// }
/// ```
pub trait ThreadSafeRpcEndpoint: Sized + Send + 'static {
    /// The type of the messages that the endpoint receives.
    type Message: RpcMessage;

    /// Handles one message.
    ///
    /// # Errors
    ///
    /// An error fails the request, if the handler has not replied: the caller receives the error.
    /// In any case it is passed to [`on_error`](Self::on_error). A panic is handled like an error.
    /// The endpoint goes on with the next message.
    fn receive(
        &mut self,
        message: Self::Message,
        cx: &EndpointContext<Self::Message>,
    ) -> impl Future<Output = Result<(), RpcError>> + Send;

    hooks!(&mut Self);
}

/// An endpoint that handles messages concurrently, with `&self`.
///
/// While one handler awaits, the handlers of later messages start, in the order of arrival. If
/// [`on_start`](Self::on_start) fails, the endpoint handles one message at a time. The counterpart
/// in Spark is `RpcEndpoint`.
///
/// All handlers run on one task, so computations belong into spawned tasks, together with the
/// [context](RpcCallContext). An [isolated](crate::EndpointOptions::isolated) endpoint runs each
/// handler on one of its threads.
///
/// ```
/// use std::time::Duration;
///
/// use rpc_core::{EndpointContext, RpcEndpoint, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// use hello::{Greeting, HelloMessage};
///
/// struct Hello;
///
/// impl RpcEndpoint for Hello {
///     type Message = HelloMessage;
///
///     async fn receive(
///         &self,
///         message: HelloMessage,
///         _cx: &EndpointContext<HelloMessage>,
///     ) -> Result<(), RpcError> {
///         // Other messages are handled during this time.
///         tokio::time::sleep(Duration::from_millis(10)).await;
///         match message {
///             HelloMessage::SayHi(hi, context) => {
///                 context.reply(Greeting { text: format!("hi, {}", hi.msg) })
///             }
///             HelloMessage::SayBye(bye, context) => {
///                 context.reply(Greeting { text: format!("bye, {}", bye.msg) })
///             }
///         }
///     }
/// }
/// ```
pub trait RpcEndpoint: Sized + Send + Sync + 'static {
    /// The type of the messages that the endpoint receives.
    type Message: RpcMessage;

    /// Handles one message.
    ///
    /// # Errors
    ///
    /// An error fails the request, if the handler has not replied: the caller receives the error.
    /// In any case it is passed to [`on_error`](Self::on_error). A panic is handled like an error.
    fn receive(
        &self,
        message: Self::Message,
        cx: &EndpointContext<Self::Message>,
    ) -> impl Future<Output = Result<(), RpcError>> + Send;

    hooks!(&Self);
}

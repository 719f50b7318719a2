//! The two message loops: one message at a time, or concurrently.
//!
//! [`IntoEndpoint::run`] starts the loop that fits the endpoint's trait.

mod concurrent;
mod endpoint_task;
mod serial;

use std::future::Future;

use concurrent::Concurrent;
use endpoint_task::EndpointTask;
pub use endpoint_task::LoopContext;
use serial::Serial;

use crate::endpoint::{RpcEndpoint, RpcMessage, ThreadSafeRpcEndpoint};

/// Marks [`ThreadSafeRpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ThreadSafeKind {}

/// Marks [`RpcEndpoint`]s in [`IntoEndpoint`].
#[derive(Debug)]
#[non_exhaustive]
pub enum ConcurrentKind {}

mod sealed {
    /// Prevents implementations of [`IntoEndpoint`](super::IntoEndpoint) in other crates.
    #[expect(unnameable_types, reason = "a sealed trait must not be nameable")]
    pub trait Sealed<Kind> {}

    impl<E: super::ThreadSafeRpcEndpoint> Sealed<super::ThreadSafeKind> for E {}
    impl<E: super::RpcEndpoint> Sealed<super::ConcurrentKind> for E {}
}

/// Both kinds of endpoint, so that one function registers them.
///
/// Implemented for every [`ThreadSafeRpcEndpoint`] and every [`RpcEndpoint`], and sealed: other
/// crates implement one of those two. `Kind` is always inferred, provided that the type implements
/// only one of them.
///
/// ```
/// use rpc_core::{IntoEndpoint, RpcEndpointRef, RpcEnv, RpcError};
///
/// /// Registers an endpoint of either kind.
/// fn register<Kind, E: IntoEndpoint<Kind>>(
///     env: &RpcEnv,
///     endpoint: E,
/// ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
///     env.setup_endpoint("my-endpoint", endpoint)
/// }
/// ```
pub trait IntoEndpoint<Kind>: sealed::Sealed<Kind> + Sized + Send + 'static {
    /// The type of the messages that the endpoint receives.
    type Message: RpcMessage;

    #[doc(hidden)]
    const IS_SERIAL: bool;

    /// Runs the endpoint, from `on_start` to `on_stop`.
    #[doc(hidden)]
    fn run(self, context: LoopContext<Self::Message>) -> impl Future<Output = ()> + Send + 'static;
}

impl<E: ThreadSafeRpcEndpoint> IntoEndpoint<ThreadSafeKind> for E {
    type Message = E::Message;
    const IS_SERIAL: bool = true;

    fn run(self, context: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Serial::new(self, context))
    }
}

impl<E: RpcEndpoint> IntoEndpoint<ConcurrentKind> for E {
    type Message = E::Message;
    const IS_SERIAL: bool = false;

    fn run(self, context: LoopContext<E::Message>) -> impl Future<Output = ()> + Send + 'static {
        EndpointTask::new(Concurrent::new(self, context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointContext;
    use crate::error::RpcError;

    struct Nothing;

    impl RpcMessage for Nothing {}

    struct Idle;

    impl ThreadSafeRpcEndpoint for Idle {
        type Message = Nothing;
        async fn receive(
            &mut self,
            _: Nothing,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            Ok(())
        }
    }

    #[test]
    fn endpoint_task_has_two_words() {
        // With the headers of the runtime and of the task tracker, the allocation has 128 bytes.
        // One word more would make it 256 bytes.
        assert_eq!(size_of::<EndpointTask<Serial<Idle>>>(), 16);
    }
}

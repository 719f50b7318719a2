//! Blocking asks, for threads that run no async tasks.

use tokio::runtime::Handle;

use crate::ask::{ActorId, deadlock_error};
use crate::endpoint::{RpcEndpointRef, RpcMessage, RpcRequest};
use crate::error::{ErrorKind, RpcError};
use crate::isolated_executor::{block_on_own_endpoint, can_block};
use crate::timeout::RpcTimeout;

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// Asks the endpoint and blocks the thread until the reply arrives.
    ///
    /// May be called on threads that do not belong to a tokio runtime, and on those of an
    /// [isolated](crate::EndpointOptions::isolated) endpoint. On a thread of tokio's blocking pool,
    /// call `Handle::current().block_on(endpoint.ask(..))` instead. The timeout is
    /// `spark.rpc.askTimeout`. The counterpart in Spark is `RpcEndpointRef.askSync`.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{HelloMessage, SayHi};
    /// fn greet(hello: &RpcEndpointRef<HelloMessage>) -> Result<String, RpcError> {
    ///     Ok(hello.ask_sync(SayHi { msg: "neo".to_owned() })?.text)
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask). [`ErrorKind::Deadlock`] on a thread of a tokio runtime, and on
    /// the last thread of an isolated endpoint that does not wait for that endpoint already; the
    /// request was not sent then. The timeout also holds if no thread drives the runtime of the
    /// environment.
    pub fn ask_sync<R: RpcRequest<M>>(&self, request: R) -> Result<R::Reply, RpcError> {
        self.ask_sync_with_timeout(request, self.info.asks.conf.timeout.clone())
    }

    /// Asks like [`ask_sync`](Self::ask_sync), with a timeout for this request.
    ///
    /// # Errors
    ///
    /// Those of [`ask_sync`](Self::ask_sync).
    pub fn ask_sync_with_timeout<R: RpcRequest<M>>(
        &self,
        request: R,
        timeout: impl Into<RpcTimeout>,
    ) -> Result<R::Reply, RpcError> {
        if Handle::try_current().is_ok() && !can_block() {
            let text = format!(
                "deadlock: ask_sync to {} on a thread of a tokio runtime would block the tasks of \
                 that thread: use `ask(..).await`",
                self.address()
            );
            return Err(RpcError::new(ErrorKind::Deadlock, text).with_peer(self.address()));
        }
        let blocked = if ActorId::of(&self.info).is_current_endpoint() {
            Some(block_on_own_endpoint().ok_or_else(|| deadlock_error(self.address()))?)
        } else {
            None
        };
        let result = self.ask_with_timeout(request, timeout).wait();
        drop(blocked);
        result
    }
}

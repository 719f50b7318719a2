//! Asks that do more than wait for one answer: block for it, ask again.

use tokio::runtime::Handle;

use crate::endpoint::RpcEndpointRef;
use crate::endpoint::{RpcMessage, RpcRequest};
use crate::error::{ErrorKind, RpcError};
use crate::isolated_executor::can_block;
use crate::timeout::RpcTimeout;

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// [`ask`](Self::ask) that blocks the thread until the answer is there: for threads that are
    /// not the runtime's, and those of [isolated](crate::EndpointOptions::isolated) endpoints (`rpc
    /// 9`).
    ///
    /// On a thread of tokio's blocking pool, where this is refused too,
    /// `Handle::current().block_on(endpoint.ask(..))` does the same.
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask), and [`ErrorKind::Deadlock`] on a thread of a runtime: nothing
    /// was sent then.
    pub fn ask_sync<R: RpcRequest<M>>(&self, request: R) -> Result<R::Reply, RpcError> {
        self.ask_sync_with_timeout(request, self.about.asks.conf.timeout.clone())
    }

    /// [`ask_sync`](Self::ask_sync), waiting as long as `timeout` says.
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
                "ask_sync of {} on a thread of a runtime would block the tasks that run there: await `ask` instead",
                self.address()
            );
            return Err(RpcError::new(ErrorKind::Deadlock, text).with_peer(self.address()));
        }
        self.about.asks.deadlines.runtime.block_on(self.ask_with_timeout(request, timeout))
    }

    /// [`ask`](Self::ask) that asks again after an error that [is
    /// retryable](RpcError::is_retryable).
    ///
    /// Asks up to `spark.rpc.numRetries` times in all, each time as long as `spark.rpc.askTimeout`
    /// says, and waits `spark.rpc.retry.wait` in between (`rpc 9`). A timeout is not retryable, as
    /// the request may have been handled.
    ///
    /// # Errors
    ///
    /// Those of the last [`ask`](Self::ask). From the second on the text tells how many there were;
    /// the last error is the [`source`](std::error::Error::source).
    ///
    /// # Cancel safety
    ///
    /// As with [`ask`](Self::ask), except that nothing is sent before the first poll.
    pub async fn ask_with_retry<R: RpcRequest<M> + Clone>(
        &self,
        request: R,
    ) -> Result<R::Reply, RpcError> {
        let conf = &self.about.asks.conf;
        let mut attempt = 1;
        loop {
            let error = match self.ask(request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if attempt == conf.attempts || !error.is_retryable() {
                return Err(if attempt == 1 { error } else { error.after_attempts(attempt) });
            }
            tracing::debug!(endpoint = %self.address(), %error, attempt, "asking again");
            // Whoever polls this may be on another executor.
            let wait = conf.retry_wait;
            let waited = self
                .about
                .asks
                .deadlines
                .runtime
                .spawn(async move { tokio::time::sleep(wait).await });
            if waited.await.is_err() {
                // The runtime has shut down, and the environment with it.
                return Err(error.after_attempts(attempt));
            }
            attempt += 1;
        }
    }
}

//! Asks that are repeated after retryable errors.

use crate::endpoint::{RpcEndpointRef, RpcMessage, RpcRequest};
use crate::error::RpcError;

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// Asks the endpoint, and repeats the ask after an error that [is
    /// retryable](RpcError::is_retryable).
    ///
    /// Makes at most `spark.rpc.numRetries` attempts, with `spark.rpc.retry.wait` between two of
    /// them. `spark.rpc.askTimeout` applies to each attempt. A timeout is not retryable, because
    /// the request may have been executed.
    ///
    /// ```
    /// # use rpc_core::{RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// let greeting = hello.ask_with_retry(SayHi { msg: "neo".to_owned() }).await?;
    /// println!("{}", greeting.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ask`](Self::ask). After two or more attempts, the text contains their number, and
    /// the [`source`](std::error::Error::source) is the error of the last attempt.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the current attempt, as with [`ask`](Self::ask). A future that
    /// was never polled has sent nothing.
    pub async fn ask_with_retry<R: RpcRequest<M> + Clone>(
        &self,
        request: R,
    ) -> Result<R::Reply, RpcError> {
        let conf = &self.info.asks.conf;
        let mut attempt = 1;
        loop {
            let error = match self.ask(request.clone()).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if attempt == conf.attempts || !error.is_retryable() {
                return Err(if attempt == 1 { error } else { error.after_attempts(attempt) });
            }
            tracing::debug!(
                endpoint = %self.address(),
                error = %format_args!("{error:#}"),
                attempt,
                "retrying an ask"
            );
            // On the environment's runtime, because this future may be polled by any executor.
            let wait = conf.retry_wait;
            let waited =
                self.info.asks.timer.runtime.spawn(async move { tokio::time::sleep(wait).await });
            if waited.await.is_err() {
                // The runtime has shut down, and the environment with it.
                return Err(error.after_attempts(attempt));
            }
            attempt += 1;
        }
    }
}

//! Asks that are repeated by a policy.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use futures::future::{Either, select};
use network_common::{RetryBudget, RetryPolicy};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::ask::{AskFuture, current_deadline};
use crate::endpoint::endpoint_ref::RefTarget;
use crate::endpoint::{RpcEndpointRef, RpcMessage, RpcRequest};
use crate::error::{ErrorKind, RpcError};
use crate::timeout::RpcTimeout;

impl<M: RpcMessage> RpcEndpointRef<M> {
    /// Asks the endpoint, and repeats the ask by `policy` after certain errors.
    ///
    /// An ask is repeated after an error that [is retryable](RpcError::is_retryable): the request
    /// was certainly not executed. If the rpc has the option `idempotency_level = IDEMPOTENT` or
    /// `NO_SIDE_EFFECTS` in its `.proto` file, it is also repeated after a timeout of an attempt, a
    /// lost connection, and a callee that shuts down or drops the request.
    ///
    /// All refs to one peer share its retry budget: if too many asks to it fail, they are not
    /// repeated (`spark.rpc.retry.budget`, [`RetryBudget`]). Asks in the same environment have no
    /// budget. In a handler, the attempts and waits end at the deadline of the request that it
    /// handles.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use rpc_core::{RetryPolicy, RpcEndpointRef, RpcError};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{HelloMessage, SayHi};
    /// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
    /// let policy = RetryPolicy::new().attempts(5).total_timeout(Duration::from_secs(20));
    /// let greeting = hello.ask_with(SayHi { msg: "neo".to_owned() }, policy).await?;
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
    /// Dropping the future cancels the current attempt, as with [`ask`](Self::ask). Nothing is sent
    /// before the future is polled.
    pub fn ask_with<R: RpcRequest<M> + Clone>(
        &self,
        request: R,
        policy: RetryPolicy,
    ) -> RetryingAsk<M, R> {
        RetryingAsk {
            endpoint: self.clone(),
            request,
            policy,
            limit: "RetryPolicy",
            attempt_timeout: None,
            hedge_after: None,
            inherited_deadline: current_deadline(),
        }
    }

    /// Asks like [`ask_with`](Self::ask_with), by the settings of Spark.
    ///
    /// Makes at most `spark.rpc.numRetries` attempts, with a random time of at most
    /// `spark.rpc.retry.wait` between two of them. `spark.rpc.askTimeout` applies to each attempt.
    /// A timeout is not retryable, because the request may have been executed, unless the rpc is
    /// idempotent. The counterpart in Spark before 2.3 is `RpcEndpointRef.askWithRetry`.
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
    /// Those of [`ask_with`](Self::ask_with).
    ///
    /// # Cancel safety
    ///
    /// That of [`ask_with`](Self::ask_with).
    pub async fn ask_with_retry<R: RpcRequest<M> + Clone>(
        &self,
        request: R,
    ) -> Result<R::Reply, RpcError> {
        let conf = &self.info.asks.conf;
        let policy = RetryPolicy::new().attempts(conf.attempts).first_wait(conf.retry_wait);
        let policy = policy.max_wait(conf.retry_wait);
        RetryingAsk { limit: "spark.rpc.numRetries", ..self.ask_with(request, policy) }.run().await
    }

    /// Returns the budget for repeated asks to this peer; `None` for a local endpoint.
    fn retry_budget(&self) -> Option<&RetryBudget> {
        match &self.target {
            RefTarget::Local(_) => None,
            RefTarget::Remote(route) => Some(route.retry_budget()),
        }
    }
}

/// An ask that is repeated, from [`ask_with`](RpcEndpointRef::ask_with); `.await` sends it.
///
/// ```
/// # use std::time::Duration;
/// # use rpc_core::{RetryPolicy, RpcEndpointRef, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{HelloMessage, SayHi};
/// # async fn example(hello: RpcEndpointRef<HelloMessage>) -> Result<(), RpcError> {
/// let greeting = hello
///     .ask_with(SayHi { msg: "neo".to_owned() }, RetryPolicy::new())
///     .attempt_timeout(Duration::from_secs(2))
///     .hedge_after(Duration::from_millis(200))
///     .await?;
/// println!("{}", greeting.text);
/// # Ok(())
/// # }
/// ```
#[must_use = "the request is sent when this is awaited"]
pub struct RetryingAsk<M, R> {
    endpoint: RpcEndpointRef<M>,
    request: R,
    policy: RetryPolicy,
    /// The limit of attempts in the error text.
    limit: &'static str,
    /// `None` for the environment's timeout of asks.
    attempt_timeout: Option<RpcTimeout>,
    hedge_after: Option<Duration>,
    /// The deadline of the request whose handler asks.
    inherited_deadline: Option<Instant>,
}

impl<M: RpcMessage, R: RpcRequest<M> + Clone> RetryingAsk<M, R> {
    /// Sets the timeout of each attempt; by default it is `spark.rpc.askTimeout`.
    pub fn attempt_timeout(mut self, timeout: impl Into<RpcTimeout>) -> Self {
        self.attempt_timeout = Some(timeout.into());
        self
    }

    /// Sends the request a second time if an attempt has no reply after `wait`.
    ///
    /// The first reply is the result; the other request is cancelled. This shortens the longest
    /// response times at the price of more requests. Both requests are one attempt of the policy.
    /// The second one is not sent while the retry budget of the peer permits no repetition.
    ///
    /// Only for idempotent rpcs, because both requests may be executed. For others it does not
    /// compile:
    ///
    /// ```compile_fail,E0080
    /// # use std::time::Duration;
    /// # use rpc_core::{RetryingAsk, RpcCallContext, RpcMessage, RpcRequest};
    /// struct Message;
    /// impl RpcMessage for Message {}
    /// #[derive(Clone)]
    /// struct Increment;
    /// impl RpcRequest<Message> for Increment {
    ///     type Reply = ();
    ///     fn into_message(self, _: RpcCallContext<()>) -> Message { Message }
    /// }
    /// fn main() {
    ///     type Ask = RetryingAsk<Message, Increment>;
    ///     let hedge: fn(Ask, Duration) -> Ask = Ask::hedge_after;
    ///     std::hint::black_box(hedge);
    /// }
    /// ```
    pub fn hedge_after(mut self, wait: Duration) -> Self {
        const {
            assert!(
                R::IDEMPOTENT,
                "only an idempotent rpc can be hedged: set its option `idempotency_level` in the \
                 .proto file"
            );
        }
        self.hedge_after = Some(wait);
        self
    }

    async fn run(self) -> Result<R::Reply, RpcError> {
        let policy = match self.inherited_rest() {
            Some(rest) => self.policy.clone().limit_total_timeout(rest),
            None => self.policy.clone(),
        };
        let mut schedule = policy.start();
        loop {
            let attempt = schedule.attempt();
            let error = match self.attempt(attempt.remaining).await {
                Ok(reply) => {
                    self.endpoint.retry_budget().inspect(|budget| budget.on_success());
                    return Ok(reply);
                }
                Err(error) => error,
            };
            let number = attempt.number;
            let last_error = |error: RpcError| {
                if number == 1 { error } else { error.after_attempts(number, self.limit) }
            };
            if !may_repeat::<M, R>(&error) {
                return Err(last_error(error));
            }
            if self.endpoint.retry_budget().is_some_and(|budget| !budget.on_failure()) {
                let limit =
                    "too many asks to the peer fail, more than spark.rpc.retry.budget permits";
                return Err(error.after_attempts(number, limit));
            }
            let Some(wait) = schedule.next_wait() else { return Err(last_error(error)) };
            tracing::debug!(
                endpoint = %self.endpoint.address(),
                error = %format_args!("{error:#}"),
                attempt = number,
                "retrying an ask"
            );
            if !self.sleep(wait).await {
                // The runtime has shut down, and the environment with it.
                return Err(last_error(error));
            }
        }
    }

    /// Makes one attempt: one ask, or two if the first one has no reply after `hedge_after`.
    async fn attempt(&self, remaining: Option<Duration>) -> Result<R::Reply, RpcError> {
        let mut first = self.ask(remaining);
        let Some(wait) = self.hedge_after else { return first.await };
        let start = Instant::now();
        let sleep = std::pin::pin!(self.sleep(wait));
        if let Either::Left((result, _)) = select(&mut first, sleep).await {
            return result;
        }
        if self.endpoint.retry_budget().is_some_and(|budget| !budget.permits_retries()) {
            return first.await;
        }
        let second = self.ask(remaining.map(|rest| rest.saturating_sub(start.elapsed())));
        match select(first, second).await {
            // The other one may still succeed.
            Either::Left((Err(error), other)) | Either::Right((Err(error), other))
                if may_repeat::<M, R>(&error) =>
            {
                other.await
            }
            Either::Left((result, _)) | Either::Right((result, _)) => result,
        }
    }

    /// `remaining`: the rest of the policy's total timeout.
    fn ask(&self, remaining: Option<Duration>) -> AskFuture<R::Reply> {
        let own = self.attempt_timeout.as_ref();
        let mut timeout = own.unwrap_or(&self.endpoint.info.asks.conf.timeout).clone();
        if let Some(rest) = remaining.filter(|rest| *rest < timeout.duration()) {
            timeout = RpcTimeout::new(rest, "RetryPolicy::total_timeout");
        }
        if let Some(rest) = self.inherited_rest().filter(|rest| *rest <= timeout.duration()) {
            timeout = timeout.inherit(rest);
        }
        self.endpoint.ask_with_timeout(self.request.clone(), timeout)
    }

    fn inherited_rest(&self) -> Option<Duration> {
        let deadline = self.inherited_deadline?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Sleeps on the environment's runtime, because any executor may poll this future.
    ///
    /// Returns false if that runtime has shut down.
    async fn sleep(&self, wait: Duration) -> bool {
        let sleep = async move { tokio::time::sleep(wait).await };
        let runtime = &self.endpoint.info.asks.timer.runtime;
        AbortOnDropHandle::new(runtime.spawn(sleep)).await.is_ok()
    }
}

/// Returns whether an ask may be repeated after `error`.
fn may_repeat<M: RpcMessage, R: RpcRequest<M>>(error: &RpcError) -> bool {
    error.is_retryable() || (R::IDEMPOTENT && is_transient(error))
}

/// Returns whether a repetition may succeed, although the request may have been executed.
pub(crate) fn is_transient(error: &RpcError) -> bool {
    match error.kind() {
        ErrorKind::Timeout | ErrorKind::Network | ErrorKind::NoReply => true,
        // The callee shuts down; another run of it may follow. Otherwise this side has stopped.
        ErrorKind::Stopped => error.is_remote(),
        _ => false,
    }
}

impl<M: RpcMessage, R: RpcRequest<M> + Clone + Sync> IntoFuture for RetryingAsk<M, R> {
    type Output = Result<R::Reply, RpcError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl<M, R> fmt::Debug for RetryingAsk<M, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryingAsk")
            .field("endpoint", &self.endpoint)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

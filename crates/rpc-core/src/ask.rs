//! The answer to come of an ask, with its time limit.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use crate::abort::AbortHandle;
use crate::address::RpcEndpointAddress;
use crate::conf::AskConf;
use crate::deadlines::{Deadlines, Over};
use crate::error::{ErrorKind, RpcError};
use crate::post::RemoteAnswer;
use crate::running::EndpointId;
use crate::slot::Slot;
use crate::timeout::RpcTimeout;
use crate::wire::{self, IncomingBody};

/// What asks keep of the ref that made them.
pub(crate) struct About {
    pub(crate) address: RpcEndpointAddress,
    pub(crate) conf: AskConf,
    pub(crate) deadlines: Arc<Deadlines>,
    /// If it is in this environment.
    pub(crate) endpoint: Option<EndpointId>,
}

/// The answer to come of an [ask](crate::RpcEndpointRef::ask). Can be polled on any executor.
#[must_use = "the request is sent already; await this for the answer, or use `send` if there is no need to know"]
pub struct Ask<T> {
    state: State<T>,
    about: Arc<About>,
    timeout: RpcTimeout,
    deadline: Option<Instant>,
    /// The key among the deadlines. None before the first poll, when the answer may be there.
    waiting: Option<usize>,
    /// There once somebody wanted one.
    abort: Option<AbortHandle>,
}

pub(crate) enum State<T> {
    Local(Arc<Slot<T>>),
    Remote { answer: RemoteAnswer, decode: fn(IncomingBody) -> Result<T, RpcError> },
    Refused(RpcError),
    Done,
}

// Nothing in it is pinned in place.
impl<T> Unpin for Ask<T> {}

impl<T> Future for Ask<T> {
    type Output = Result<T, RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(error) = this.abort.as_ref().and_then(|abort| abort.poll_aborted(cx)) {
            this.finish();
            return Poll::Ready(Err(error));
        }
        let polled = match &mut this.state {
            State::Local(slot) => slot.poll(cx),
            State::Remote { answer, decode } => Pin::new(answer)
                .poll(cx)
                .map(|answer| wire::decode_answer(answer?, &this.about.address).and_then(*decode)),
            State::Refused(error) => Poll::Ready(Err(error.clone())),
            State::Done => panic!("Ask polled after it was ready"),
        };
        let outcome = match polled {
            Poll::Ready(outcome) => outcome,
            Poll::Pending if this.about.endpoint.is_some_and(EndpointId::is_running) => {
                Err(waits_for_itself(&this.about.address))
            }
            Poll::Pending => Err(match std::task::ready!(this.poll_deadline(cx)) {
                Over::Due => this.timeout.expired(&this.about.address),
                Over::RuntimeGone => runtime_gone(&this.about.address),
            }),
        };
        this.finish();
        Poll::Ready(outcome)
    }
}

impl<T> Ask<T> {
    /// What gives this ask up, from elsewhere and with an error of one's own. To give it up without one, drop it.
    ///
    /// ```
    /// # use rpc_core::{Ask, ErrorKind, RpcError};
    /// # async fn example(mut ask: Ask<u32>) {
    /// let abort = ask.abort_handle();
    /// let answer = tokio::spawn(ask);
    /// abort.abort("the stage was cancelled");
    /// # }
    /// ```
    #[must_use]
    pub fn abort_handle(&mut self) -> AbortHandle {
        self.abort.get_or_insert_with(|| AbortHandle::new(&self.about.address)).clone()
    }

    /// `deadline`: none if it is beyond what the clock can count.
    pub(crate) fn new(
        state: State<T>,
        about: Arc<About>,
        timeout: RpcTimeout,
        deadline: Option<Instant>,
    ) -> Self {
        Self { state, about, timeout, deadline, waiting: None, abort: None }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        let deadlines = &self.about.deadlines;
        match self.waiting {
            Some(key) => deadlines.poll(key, cx.waker()),
            None => match deadlines.add(self.deadline, cx.waker()) {
                Ok(key) => {
                    self.waiting = Some(key);
                    Poll::Pending
                }
                Err(over) => Poll::Ready(over),
            },
        }
    }

    fn finish(&mut self) {
        if let State::Local(slot) = std::mem::replace(&mut self.state, State::Done) {
            slot.close();
        }
        if let Some(key) = self.waiting.take() {
            self.about.deadlines.cancel(key);
        }
    }
}

fn waits_for_itself(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!(
        "{endpoint} waits in a handler for its own answer, which it can only give when that handler has ended: \
         await the ask in a spawned task, or make it an RpcEndpoint"
    );
    RpcError::new(ErrorKind::Deadlock, text).with_peer(endpoint)
}

fn runtime_gone(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!("the runtime of the environment shut down before {endpoint} answered");
    RpcError::new(ErrorKind::Stopped, text).with_peer(endpoint)
}

impl<T> Drop for Ask<T> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<T> fmt::Debug for Ask<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("of", &self.about.address)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

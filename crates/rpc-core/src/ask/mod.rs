//! The answer to come of an ask, with its time limit.

mod abort;
mod deadline_timer;
mod handler_scope;
mod reply_slot;

pub use abort::AbortHandle;
pub(crate) use deadline_timer::{DeadlineTimer, Expiry};
pub(crate) use handler_scope::{
    ActorId, HandlerFuture, HandlerId, current_deadline, decode_request, defer_failure,
    reject_message,
};
pub(crate) use reply_slot::ReplySlot;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::conf::AskConf;
use crate::error::{ErrorKind, RpcError};
use crate::peer::RemoteReplyFuture;
use crate::timeout::RpcTimeout;
use crate::trace::Tracer;
use crate::wire::{self, DecodeBuf};

/// What the refs of an environment have in common: what their asks go by, and how many of these
/// there are.
pub(crate) struct AskResources {
    pub(crate) conf: AskConf,
    pub(crate) deadlines: Arc<DeadlineTimer>,
    pub(crate) tracer: Tracer,
    /// How many wait for an answer.
    pub(crate) pending: AtomicUsize,
}

impl AskResources {
    pub(crate) fn new(conf: AskConf, tracer: Tracer, runtime: Handle) -> Arc<Self> {
        Arc::new(Self {
            conf,
            deadlines: DeadlineTimer::new(runtime),
            tracer,
            pending: AtomicUsize::new(0),
        })
    }
}

/// What is known of an endpoint. An endpoint of this environment has it in common with all of its
/// refs, one elsewhere with the clones of a ref.
pub(crate) struct EndpointInfo {
    pub(crate) address: RpcEndpointAddress,
    pub(crate) asks: Arc<AskResources>,
    /// Which run of its environment it belongs to; 0 if that is not known.
    pub(crate) incarnation: u64,
    /// The peer of the connection it is reached over, if its environment does not listen.
    pub(crate) socket: Option<RpcAddress>,
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

    /// Who does not answer, for error texts.
    pub(crate) fn peer(&self) -> &dyn fmt::Display {
        match &self.socket {
            Some(socket) => socket,
            None => &self.address,
        }
    }

    /// Counts one more ask that waits, unless there are too many.
    pub(crate) fn reserve_ask(&self) -> Result<(), RpcError> {
        let conf = &self.asks.conf;
        let of_all = self.asks.pending.fetch_add(1, Ordering::Relaxed);
        let of_this = self.pending.fetch_add(1, Ordering::Relaxed);
        let (limit, what, setting) = if of_this >= conf.max_pending_per_endpoint {
            (conf.max_pending_per_endpoint, "asks of it", "spark.rpc.ask.maxPendingPerEndpoint")
        } else if of_all >= conf.max_pending {
            (conf.max_pending, "asks of this environment", "spark.rpc.ask.maxPending")
        } else {
            return Ok(());
        };
        self.end();
        let text = format!(
            "cannot ask {}: {limit} {what} wait for an answer already ({setting})",
            self.address
        );
        Err(RpcError::new(ErrorKind::Limit, text).with_peer(&self.address).retryable())
    }

    /// One ask less.
    pub(crate) fn end(&self) {
        self.pending.fetch_sub(1, Ordering::Relaxed);
        self.asks.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The answer to come of an [ask](crate::RpcEndpointRef::ask). Can be polled on any executor.
#[must_use = "the request is sent already; await this for the answer, or use `send` if there is no need to know"]
pub struct AskFuture<T> {
    state: AskState<T>,
    about: Arc<EndpointInfo>,
    /// Unless it is the environment's. Boxed: an ask is moved often.
    timeout: Option<Box<RpcTimeout>>,
    deadline: Option<Instant>,
    /// The key among the deadlines. None before the first poll, when the answer may be there.
    waiting: Option<usize>,
    /// There once somebody wanted one.
    abort: Option<AbortHandle>,
}

/// The first two have been counted by [`About::begin`].
pub(crate) enum AskState<T> {
    Local {
        slot: Arc<ReplySlot<T>>,
        /// The answer has been taken out.
        answered: bool,
    },
    Remote {
        reply: RemoteReplyFuture,
        decode: fn(DecodeBuf) -> Result<T, RpcError>,
    },
    Refused(RpcError),
    Done,
}

// Nothing in it is pinned in place.
impl<T> Unpin for AskFuture<T> {}

impl<T> Future for AskFuture<T> {
    type Output = Result<T, RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Some(error) = this.abort.as_ref().and_then(|abort| abort.poll_aborted(cx)) {
            this.finish();
            return Poll::Ready(Err(error.mark_as_result()));
        }
        let polled = match &mut this.state {
            AskState::Local { slot, answered } => {
                let polled = slot.poll(cx);
                *answered = polled.is_ready();
                polled
            }
            AskState::Remote { reply, decode } => Pin::new(reply)
                .poll(cx)
                .map(|response| wire::decode_reply(response?, &this.about.address, *decode)),
            AskState::Refused(error) => Poll::Ready(Err(error.clone())),
            AskState::Done => panic!("Ask polled after it was ready"),
        };
        let outcome = match polled {
            // The endpoint's side counts the same time, and may be the first to tell.
            Poll::Ready(Err(error))
                if error.is_remote() && error.is_timeout() && this.is_past_deadline() =>
            {
                Err(this.timeout().timeout_error(this.about.peer()).with_source(error))
            }
            Poll::Ready(outcome) => outcome,
            Poll::Pending if ActorId::of(&this.about).is_current() => {
                Err(deadlock_error(&this.about.address))
            }
            Poll::Pending => Err(match std::task::ready!(this.poll_deadline(cx)) {
                Expiry::Elapsed => this.timeout().timeout_error(this.about.peer()),
                Expiry::RuntimeStopped => runtime_stopped_error(&this.about.address),
            }),
        };
        this.finish();
        Poll::Ready(outcome.map_err(RpcError::mark_as_result))
    }
}

impl<T> AskFuture<T> {
    /// What gives this ask up, from elsewhere and with an error of one's own. To give it up without
    /// one, drop it.
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

    /// `timeout`: none if it is the environment's. `deadline`: none if it is beyond what the clock
    /// can count.
    pub(crate) fn new(
        state: AskState<T>,
        about: Arc<EndpointInfo>,
        timeout: Option<RpcTimeout>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { state, about, timeout: timeout.map(Box::new), deadline, waiting: None, abort: None }
    }

    fn timeout(&self) -> &RpcTimeout {
        self.timeout.as_deref().unwrap_or(&self.about.asks.conf.timeout)
    }

    fn is_past_deadline(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Expiry> {
        let deadlines = &self.about.asks.deadlines;
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
        match &self.state {
            AskState::Local { slot, answered } => {
                if !answered {
                    slot.cancel();
                }
                self.about.end();
            }
            AskState::Remote { .. } => self.about.end(),
            // It was never begun.
            AskState::Refused(_) => {}
            AskState::Done => return,
        }
        self.state = AskState::Done;
        if let Some(key) = self.waiting.take() {
            self.about.asks.deadlines.cancel(key);
        }
    }
}

fn deadlock_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!(
        "{endpoint} waits in a handler for its own answer, which it can only give when that handler has ended: \
         await the ask in a spawned task, or make it an RpcEndpoint"
    );
    RpcError::new(ErrorKind::Deadlock, text).with_peer(endpoint)
}

fn runtime_stopped_error(endpoint: &RpcEndpointAddress) -> RpcError {
    let text = format!("the runtime of the environment shut down before {endpoint} answered");
    RpcError::new(ErrorKind::Stopped, text).with_peer(endpoint)
}

impl<T> Drop for AskFuture<T> {
    fn drop(&mut self) {
        self.finish();
    }
}

impl<T> fmt::Debug for AskFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("of", &self.about.address)
            .field("timeout", self.timeout())
            .finish_non_exhaustive()
    }
}

//! The handle that answers one ask.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use network_common::RpcResponseCallback;

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::slot::Slot;
use crate::wire;

/// Answers one ask, now or later, from anywhere: it may be kept, moved to another task, or passed on.
///
/// Dropped without an answer it fails the asker. When it is dropped while the `receive` that got it still runs, the
/// asker gets what that `receive` ends with, so `?` inside `receive` reaches the asker; dropped elsewhere, the asker
/// learns at once that nobody will answer.
///
/// A request that was sent rather than asked has a context too; what is replied to it is discarded.
pub struct RpcCallContext<T: Send + 'static> {
    /// Taken by the answer.
    asker: Option<Asker<T>>,
    sender: Option<RpcAddress>,
}

enum Asker<T> {
    Local(Arc<Slot<T>>),
    Remote {
        reply: RemoteReply,
        encode: fn(&T) -> Bytes,
    },
    /// The request was sent, nobody waits.
    Nobody,
}

/// The way back over the connection that brought a request.
pub(crate) struct RemoteReply {
    origin: Origin,
    callback: RpcResponseCallback,
}

impl fmt::Debug for RemoteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteReply").finish_non_exhaustive()
    }
}

/// Which ask a context answers: unique among those alive. Zero: none.
pub(crate) type Origin = u64;

impl RemoteReply {
    pub(crate) fn new(callback: RpcResponseCallback) -> Self {
        // Odd numbers: those of local asks are addresses, which are even.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { origin: NEXT.fetch_add(2, Ordering::Relaxed), callback }
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// The request reached no endpoint.
    pub(crate) fn refuse(self, error: &RpcError) {
        self.callback.fail(error);
    }
}

impl<T: Send + 'static> RpcCallContext<T> {
    pub(crate) fn local(slot: Arc<Slot<T>>, sender: Option<RpcAddress>) -> Self {
        Self { asker: Some(Asker::Local(slot)), sender }
    }

    pub(crate) fn remote(reply: RemoteReply, encode: fn(&T) -> Bytes, sender: Option<RpcAddress>) -> Self {
        Self { asker: Some(Asker::Remote { reply, encode }), sender }
    }

    pub(crate) fn nobody(sender: Option<RpcAddress>) -> Self {
        Self { asker: Some(Asker::Nobody), sender }
    }

    /// Answers the asker.
    ///
    /// Ok also when the asker has gone, timed out or never waited: an endpoint owes an answer, not its arrival.
    ///
    /// # Errors
    ///
    /// None at present; an answer that is too large to travel will be one, and fails the asker too.
    pub fn reply(mut self, value: T) -> Result<(), RpcError> {
        match self.asker.take() {
            Some(Asker::Local(slot)) => slot.complete(Ok(value)),
            Some(Asker::Remote { reply, encode }) => reply.callback.reply(encode(&value)),
            Some(Asker::Nobody) | None => {}
        }
        Ok(())
    }

    /// Fails the asker with `error`.
    ///
    /// In the same environment it gets the very object; across the network kind, text, causes' texts and
    /// [`is_retryable`](RpcError::is_retryable).
    pub fn send_failure(mut self, error: RpcError) {
        if let Some(asker) = self.asker.take() {
            asker.fail(error);
        }
    }

    /// Where the asker's environment listens; for one that does not, the address of its socket. `None` if the
    /// asker is in this environment and this environment does not listen.
    #[must_use]
    pub fn sender_address(&self) -> Option<&RpcAddress> {
        self.sender.as_ref()
    }
}

impl<T: Send + 'static> Asker<T> {
    fn fail(self, error: RpcError) {
        match self {
            Self::Local(slot) => slot.complete(Err(error)),
            Self::Remote { reply, .. } => reply.callback.reply(wire::encode_failure(&error)),
            Self::Nobody => {}
        }
    }

    fn origin(&self) -> Origin {
        match self {
            Self::Local(slot) => origin_of(slot),
            Self::Remote { reply, .. } => reply.origin,
            Self::Nobody => 0,
        }
    }
}

/// The number of a local ask: the address of its slot, which is unique as long as its context lives.
pub(crate) fn origin_of<T>(slot: &Arc<Slot<T>>) -> Origin {
    Arc::as_ptr(slot) as usize as Origin
}

impl<T: Send + 'static> Drop for RpcCallContext<T> {
    fn drop(&mut self) {
        let Some(asker) = self.asker.take() else { return };
        let origin = asker.origin();
        if origin == 0 {
            return;
        }
        // Thread locals are gone while a thread ends; then nothing is running here either.
        let running = RUNNING.try_with(|running| running.origin.get() == origin).unwrap_or(false);
        if running {
            RUNNING.with(|running| running.abandoned.replace(Some(Box::new(move |error| asker.fail(error)))));
        } else {
            asker.fail(unanswered());
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RpcCallContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcCallContext").field("sender", &self.sender).finish_non_exhaustive()
    }
}

fn unanswered() -> RpcError {
    RpcError::new(ErrorKind::Unanswered, "the endpoint dropped the request without an answer")
}

type Abandoned = Box<dyn FnOnce(RpcError) + Send>;

thread_local! {
    /// The request whose `receive` this thread polls right now, and its context if `receive` has dropped it.
    static RUNNING: Running = const { Running { origin: Cell::new(0), abandoned: RefCell::new(None) } };
}

struct Running {
    origin: Cell<Origin>,
    abandoned: RefCell<Option<Abandoned>>,
}

/// Runs one handler to its end: a panic becomes an error, and if it dropped the context of `origin` unanswered,
/// the asker gets what the handler ended with.
pub(crate) async fn supervise(
    origin: Origin,
    handler: impl Future<Output = Result<(), RpcError>>,
) -> Result<(), RpcError> {
    let mut handler = pin!(handler);
    let mut abandoned = None;
    let outcome = poll_fn(|cx| {
        // Polls nest where a handler blocks on a future, so what was there is put back.
        let outer = RUNNING.with(|running| (running.origin.replace(origin), running.abandoned.take()));
        let polled = catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
        let dropped = RUNNING.with(|running| {
            running.origin.set(outer.0);
            running.abandoned.replace(outer.1)
        });
        abandoned = abandoned.take().or(dropped);
        match polled {
            Ok(polled) => polled,
            Err(payload) => std::task::Poll::Ready(Err(panicked(&*payload))),
        }
    })
    .await;
    if let Some(fail) = abandoned {
        fail(outcome.as_ref().err().cloned().unwrap_or_else(unanswered));
    }
    outcome
}

/// Drops a message that no endpoint will handle; if it is an ask, the asker learns why.
pub(crate) fn discard<M>(origin: Origin, message: M, why: &RpcError) {
    let outer = RUNNING.with(|running| (running.origin.replace(origin), running.abandoned.take()));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(message)));
    let abandoned = RUNNING.with(|running| {
        running.origin.set(outer.0);
        running.abandoned.replace(outer.1)
    });
    if let Some(fail) = abandoned {
        fail(why.clone());
    }
    if dropped.is_err() {
        tracing::error!("the destructor of a message panicked");
    }
}

fn panicked(payload: &(dyn Any + Send)) -> RpcError {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)");
    RpcError::new(ErrorKind::Panic, format!("the endpoint's handler panicked: {text}"))
}

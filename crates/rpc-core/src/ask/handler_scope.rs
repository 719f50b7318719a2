//! What this thread runs right now: whose handler, and for which request. So an ask knows the
//! deadline it inherits, a dropped context that its handler may still tell why, and who waits for
//! itself is noticed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;
use tracing::Span;

use crate::error::{ErrorKind, RpcError, no_reply_error};
use crate::message_metadata::{AskId, MessageMetadata};
use crate::sync::thread_local;
use crate::trace::TraceSpan;

/// An endpoint or environment of this process, by the address of its inside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActorId(NonZero<usize>);

/// Whose handlers run.
#[derive(Clone, Copy)]
pub(crate) struct HandlerId {
    pub(crate) env: ActorId,
    /// None if it handles many messages at a time, as then none of them waits for another.
    pub(crate) endpoint: Option<ActorId>,
}

impl ActorId {
    pub(crate) fn of<T: ?Sized>(inside: &Arc<T>) -> Self {
        Self(NonNull::from(&**inside).cast::<()>().addr())
    }

    /// Whether a handler of this endpoint, or of an endpoint of this environment, is further up on
    /// this thread's stack.
    pub(crate) fn is_current(self) -> bool {
        current(|running| running.actor)
            .is_some_and(|HandlerId { env, endpoint }| env == self || endpoint == Some(self))
    }
}

/// Until when the asker waits whose request this thread handles right now.
pub(crate) fn current_deadline() -> Option<Instant> {
    current(|running| running.deadline)
}

type FailCaller = Box<dyn FnOnce(RpcError) + Send>;

#[derive(Clone, Copy)]
struct HandlerScope {
    actor: Option<HandlerId>,
    /// Zero if it is no ask.
    ask: AskId,
    deadline: Option<Instant>,
}

impl HandlerScope {
    const NONE: Self = Self { actor: None, ask: 0, deadline: None };
}

thread_local! {
    static CURRENT: Cell<HandlerScope> = const { Cell::new(HandlerScope::NONE) };
    /// What fails the asker of the request, if its handler has dropped the context.
    static DEFERRED_FAILURES: RefCell<Option<FailCaller>> = const { RefCell::new(None) };
}

fn current<T>(part: impl FnOnce(&HandlerScope) -> Option<T>) -> Option<T> {
    // Thread locals are gone while a thread ends; then nothing is running here either.
    CURRENT.try_with(|running| part(&running.get())).ok().flatten()
}

/// The context of `ask` was dropped: if its handler is running, what that ends with is for `fail`;
/// else `fail` comes back.
pub(crate) fn defer_failure(ask: AskId, fail: FailCaller) -> Option<FailCaller> {
    if current(|running| Some(running.ask)) != Some(ask) {
        return Some(fail);
    }
    DEFERRED_FAILURES.with(|abandoned| abandoned.replace(Some(fail)));
    None
}

/// Calls `inside` as the handler that `running` tells of; also gives what fails its asker, if its
/// context was dropped. Polls nest where a handler blocks on a future, so what was there is put
/// back.
fn run<T>(running: HandlerScope, inside: impl FnOnce() -> T) -> (T, Option<FailCaller>) {
    let outer = CURRENT.with(|outer| outer.replace(running));
    if running.ask == 0 {
        let result = inside();
        CURRENT.with(|running| running.set(outer));
        return (result, None);
    }
    let outer = (outer, DEFERRED_FAILURES.with(RefCell::take));
    let result = inside();
    CURRENT.with(|running| running.set(outer.0));
    (result, DEFERRED_FAILURES.with(|abandoned| abandoned.replace(outer.1)))
}

/// Runs one handler to its end: a panic becomes an error, and if it dropped the context of its
/// request unanswered, the asker gets what the handler ended with.
///
/// The handler is pinned by whoever runs it, as a future that is passed on by value is copied each
/// time.
pub(crate) struct HandlerFuture<'a, F> {
    handler: Pin<&'a mut F>,
    running: HandlerScope,
    span: TraceSpan,
    abandoned: Option<FailCaller>,
}

impl<'a, F> HandlerFuture<'a, F> {
    pub(crate) fn new(actor: HandlerId, handler: Pin<&'a mut F>) -> Self {
        let running = HandlerScope { actor: Some(actor), ask: 0, deadline: None };
        Self { handler, running, span: None, abandoned: None }
    }

    /// The handling of a message with this metadata.
    pub(crate) fn of_message(
        actor: HandlerId,
        metadata: &mut MessageMetadata,
        handler: Pin<&'a mut F>,
    ) -> Self {
        let running = HandlerScope {
            actor: Some(actor),
            ask: metadata.ask_id(),
            deadline: metadata.deadline(),
        };
        Self { handler, running, span: metadata.span.take(), abandoned: None }
    }
}

impl<F: Future<Output = Result<(), RpcError>>> Future for HandlerFuture<'_, F> {
    type Output = Result<(), RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { handler, running, span, abandoned } = &mut *self;
        let _entered = span.as_deref().map(Span::enter);
        let poll = || catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
        let (polled, dropped) = run(*running, poll);
        if dropped.is_some() {
            *abandoned = dropped;
        }
        let outcome = match polled {
            Ok(polled) => std::task::ready!(polled),
            Err(payload) => Err(panic_error(&*payload)),
        };
        if let Some(fail) = abandoned.take() {
            fail(outcome.as_ref().err().cloned().unwrap_or_else(no_reply_error));
        }
        Poll::Ready(outcome)
    }
}

/// Decodes a request for an endpoint. If that fails or panics, the caller of `ask` gets the
/// error, also when the request's context exists already.
pub(crate) fn decode_request<M>(
    ask: AskId,
    decode: impl FnOnce() -> Result<M, RpcError>,
) -> Result<M, RpcError> {
    let running = HandlerScope { actor: None, ask, deadline: None };
    let (decoded, abandoned) = run(running, || catch_unwind(AssertUnwindSafe(decode)));
    let decoded = decoded.unwrap_or_else(|payload| {
        let text = format!("decoding the request panicked: {}", panic_text(&*payload));
        drop_payload(payload);
        Err(RpcError::new(ErrorKind::Panic, text))
    });
    if let Some(fail) = abandoned {
        fail(decoded.as_ref().err().cloned().unwrap_or_else(no_reply_error));
    }
    decoded
}

/// Drops a message that no endpoint will handle. If it is the ask `ask`, its caller gets `why`.
pub(crate) fn reject_message<M>(ask: AskId, message: M, why: &RpcError) {
    let running = HandlerScope { actor: None, ask, deadline: None };
    let (dropped, abandoned) = run(running, || catch_unwind(AssertUnwindSafe(|| drop(message))));
    if let Some(fail) = abandoned {
        fail(why.clone());
    }
    if let Err(payload) = dropped {
        tracing::error!("the destructor of a message panicked");
        drop_payload(payload);
    }
}

/// The destructor of a panic's payload may panic, too.
fn drop_payload(payload: Box<dyn Any + Send>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
}

fn panic_error(payload: &(dyn Any + Send)) -> RpcError {
    RpcError::new(
        ErrorKind::Panic,
        format!("the endpoint's handler panicked: {}", panic_text(payload)),
    )
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

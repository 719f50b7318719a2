//! The handler that this thread runs, and the request that it handles.
//!
//! Asks read it to inherit the deadline of the request and to detect that a handler awaits its own
//! endpoint. A dropped reply context reads it to wait for the result of its handler.

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

/// Identifies an endpoint or environment of this process by the address of its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActorId(NonZero<usize>);

/// Identifies the endpoint and the environment of a handler.
#[derive(Clone, Copy)]
pub(crate) struct HandlerId {
    pub(crate) env: ActorId,
    /// `None` for a concurrent endpoint, whose handlers can await each other.
    pub(crate) endpoint: Option<ActorId>,
}

impl ActorId {
    pub(crate) fn of<T: ?Sized>(state: &Arc<T>) -> Self {
        Self(NonNull::from(&**state).cast::<()>().addr())
    }

    /// Returns whether this thread runs a handler of this endpoint or environment.
    pub(crate) fn is_current(self) -> bool {
        read_current(|scope| scope.handler)
            .is_some_and(|HandlerId { env, endpoint }| env == self || endpoint == Some(self))
    }
}

/// Returns the deadline of the request that this thread handles.
pub(crate) fn current_deadline() -> Option<Instant> {
    read_current(|scope| scope.deadline)
}

/// Fails the caller of a request.
type FailCaller = Box<dyn FnOnce(RpcError) + Send>;

#[derive(Clone, Copy)]
struct HandlerScope {
    handler: Option<HandlerId>,
    /// 0 for a one-way message or an event.
    ask: AskId,
    deadline: Option<Instant>,
}

impl HandlerScope {
    const NONE: Self = Self { handler: None, ask: 0, deadline: None };
}

thread_local! {
    static CURRENT: Cell<HandlerScope> = const { Cell::new(HandlerScope::NONE) };
    /// Set when the current handler drops the context of its request without a reply.
    static DEFERRED_FAILURE: RefCell<Option<FailCaller>> = const { RefCell::new(None) };
}

fn read_current<T>(field: impl FnOnce(&HandlerScope) -> Option<T>) -> Option<T> {
    // The thread local is destroyed when its thread ends; no handler runs then.
    CURRENT.try_with(|scope| field(&scope.get())).ok().flatten()
}

/// Stores `fail` until the handler of `ask` ends, if this thread runs it. Otherwise returns `fail`.
pub(crate) fn defer_failure(ask: AskId, fail: FailCaller) -> Option<FailCaller> {
    if read_current(|scope| Some(scope.ask)) != Some(ask) {
        return Some(fail);
    }
    DEFERRED_FAILURE.with(|deferred| deferred.replace(Some(fail)));
    None
}

/// Calls `action` in `scope`. Also returns the failure that `action` deferred.
///
/// Scopes nest where a handler blocks on a future, so the outer scope is restored at the end.
fn run_in_scope<T>(scope: HandlerScope, action: impl FnOnce() -> T) -> (T, Option<FailCaller>) {
    let outer = CURRENT.with(|current| current.replace(scope));
    if scope.ask == 0 {
        let result = action();
        CURRENT.with(|current| current.set(outer));
        return (result, None);
    }
    let outer = (outer, DEFERRED_FAILURE.with(RefCell::take));
    let result = action();
    CURRENT.with(|current| current.set(outer.0));
    (result, DEFERRED_FAILURE.with(|deferred| deferred.replace(outer.1)))
}

/// Runs one handler in its scope, and turns a panic into an error.
///
/// If the handler dropped the context of its request without a reply, the caller receives the
/// handler's error. The handler is passed pinned, because a future passed by value is copied.
pub(crate) struct HandlerFuture<'a, F> {
    handler: Pin<&'a mut F>,
    scope: HandlerScope,
    span: TraceSpan,
    deferred_failure: Option<FailCaller>,
}

impl<'a, F> HandlerFuture<'a, F> {
    pub(crate) fn new(id: HandlerId, handler: Pin<&'a mut F>) -> Self {
        let scope = HandlerScope { handler: Some(id), ask: 0, deadline: None };
        Self { handler, scope, span: None, deferred_failure: None }
    }

    /// Makes the future that handles the message with this metadata.
    pub(crate) fn of_message(
        id: HandlerId,
        metadata: &mut MessageMetadata,
        handler: Pin<&'a mut F>,
    ) -> Self {
        let (ask, deadline) = (metadata.ask_id(), metadata.deadline());
        let scope = HandlerScope { handler: Some(id), ask, deadline };
        Self { handler, scope, span: metadata.span.take(), deferred_failure: None }
    }
}

impl<F: Future<Output = Result<(), RpcError>>> Future for HandlerFuture<'_, F> {
    type Output = Result<(), RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { handler, scope, span, deferred_failure } = &mut *self;
        let _entered = span.as_deref().map(Span::enter);
        let poll = || catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx)));
        let (polled, deferred) = run_in_scope(*scope, poll);
        if deferred.is_some() {
            *deferred_failure = deferred;
        }
        let outcome = match polled {
            Ok(polled) => std::task::ready!(polled),
            Err(payload) => Err(panic_error(&*payload)),
        };
        if let Some(fail) = deferred_failure.take() {
            fail(outcome.as_ref().err().cloned().unwrap_or_else(no_reply_error));
        }
        Poll::Ready(outcome)
    }
}

/// Decodes a request for an endpoint, and turns a panic of `decode` into an error.
///
/// The caller of `ask` receives the error, even if the context of the request exists already.
pub(crate) fn decode_request<M>(
    ask: AskId,
    decode: impl FnOnce() -> Result<M, RpcError>,
) -> Result<M, RpcError> {
    let scope = HandlerScope { handler: None, ask, deadline: None };
    let (decoded, deferred) = run_in_scope(scope, || catch_unwind(AssertUnwindSafe(decode)));
    let decoded = decoded.unwrap_or_else(|payload| {
        let text = format!("RpcMessage::decode panicked: {}", panic_text(&*payload));
        drop_payload(payload);
        Err(RpcError::new(ErrorKind::Panic, text))
    });
    if let Some(fail) = deferred {
        fail(decoded.as_ref().err().cloned().unwrap_or_else(no_reply_error));
    }
    decoded
}

/// Drops a message that no endpoint will handle. If it is the ask `ask`, its caller receives
/// `error`.
pub(crate) fn reject_message<M>(ask: AskId, message: M, error: &RpcError) {
    let scope = HandlerScope { handler: None, ask, deadline: None };
    let drop_message = || catch_unwind(AssertUnwindSafe(|| drop(message)));
    let (dropped, deferred) = run_in_scope(scope, drop_message);
    if let Some(fail) = deferred {
        fail(error.clone());
    }
    if let Err(payload) = dropped {
        tracing::error!(
            message_type = std::any::type_name::<M>(),
            "the destructor of a rejected message panicked"
        );
        drop_payload(payload);
    }
}

/// Drops the payload of a panic, whose destructor may panic, too.
fn drop_payload(payload: Box<dyn Any + Send>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
}

fn panic_error(payload: &(dyn Any + Send)) -> RpcError {
    let text = format!("the endpoint's handler panicked: {}", panic_text(payload));
    RpcError::new(ErrorKind::Panic, text)
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

//! The handler that this thread runs, and the request that it handles.
//!
//! Asks read it to inherit the deadline of the request and to detect that a handler awaits its own
//! endpoint. A dropped reply context reads it to wait for the result of its handler.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::num::NonZero;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll};

use network_common::log_limited;
use tokio::time::Instant;
use tracing::Span;

use crate::error::{ErrorKind, RpcError};
use crate::message_metadata::{AskId, MessageMetadata};
use crate::panics::catch_panic;
use crate::sync::thread_local;
use crate::trace::TraceSpan;

/// Identifies an endpoint or environment of this process by the address of its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct ActorId(NonZero<usize>);

/// Identifies the endpoint and the environment of a handler.
#[derive(Clone, Copy)]
pub(crate) struct HandlerId {
    pub(crate) env: ActorId,
    pub(crate) endpoint: ActorId,
    /// Is true if no other handler of the endpoint runs before this one has ended.
    pub(crate) is_exclusive: bool,
}

/// Identifies one running handler of a message among all that exist at the same time.
pub(crate) type HandlerKey = usize;

impl ActorId {
    pub(crate) fn of<T: ?Sized>(state: &Arc<T>) -> Self {
        Self(NonNull::from(&**state).cast::<()>().addr())
    }

    /// Returns whether this thread runs a handler of this environment.
    pub(crate) fn is_current_env(self) -> bool {
        read_current(|scope| scope.handler).is_some_and(|handler| handler.env == self)
    }

    /// Returns whether this thread runs a handler of this endpoint.
    pub(crate) fn is_current_endpoint(self) -> bool {
        read_current(|scope| scope.handler).is_some_and(|handler| handler.endpoint == self)
    }

    /// Returns whether this endpoint handles no message before the current handler has ended.
    pub(crate) fn is_blocked_by_current(self) -> bool {
        read_current(|scope| scope.handler)
            .is_some_and(|handler| handler.endpoint == self && handler.is_exclusive)
    }
}

/// Returns the key of the current handler, if that handles a message.
pub(crate) fn current_message_handler() -> Option<HandlerKey> {
    read_current(|scope| Some(scope.message).filter(|key| *key != 0))
}

/// Returns the deadline of the request that this thread handles.
pub(crate) fn current_deadline() -> Option<Instant> {
    read_current(|scope| scope.deadline)
}

/// Fails the caller of a request: with the error of the handler, or because there was no reply.
type FailCaller = Box<dyn FnOnce(Option<RpcError>) + Send>;

#[derive(Clone, Copy)]
struct HandlerScope {
    handler: Option<HandlerId>,
    /// 0 for a one-way message or an event.
    ask: AskId,
    deadline: Option<Instant>,
    /// 0 for other handlers than `receive`.
    message: HandlerKey,
}

impl HandlerScope {
    const NONE: Self = Self { handler: None, ask: 0, deadline: None, message: 0 };
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

/// The error or the panic of a handler.
pub(crate) struct HandlerFailure {
    pub(crate) error: RpcError,
    /// Is true if the caller of the request receives the error that the handler returned.
    pub(crate) is_reported: bool,
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
        let scope = HandlerScope { handler: Some(id), ..HandlerScope::NONE };
        Self { handler, scope, span: None, deferred_failure: None }
    }

    /// Makes the future that handles the message with this metadata.
    pub(crate) fn of_message(
        id: HandlerId,
        metadata: &mut MessageMetadata,
        handler: Pin<&'a mut F>,
    ) -> Self {
        let (ask, deadline) = (metadata.ask_id(), metadata.deadline());
        let message = (&raw const *handler).addr();
        let scope = HandlerScope { handler: Some(id), ask, deadline, message };
        Self { handler, scope, span: metadata.span.take(), deferred_failure: None }
    }
}

impl<F: Future<Output = Result<(), RpcError>>> Future for HandlerFuture<'_, F> {
    type Output = Result<(), HandlerFailure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { handler, scope, span, deferred_failure } = &mut *self;
        let _entered = span.as_deref().map(Span::enter);
        let poll = || catch_panic(|| handler.as_mut().poll(cx));
        let (polled, deferred) = run_in_scope(*scope, poll);
        if deferred.is_some() {
            *deferred_failure = deferred;
        }
        let outcome = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(outcome)) => {
                outcome.map_err(|error| HandlerFailure { error, is_reported: false })
            }
            Err(text) => Err(HandlerFailure { error: panic_error(&text), is_reported: false }),
        };
        match deferred_failure.take() {
            None => Poll::Ready(outcome),
            Some(fail) => Poll::Ready(fail_caller(fail, outcome)),
        }
    }
}

/// Fails the caller of a request whose handler dropped the context without a reply.
#[cold]
fn fail_caller(
    fail: FailCaller,
    mut outcome: Result<(), HandlerFailure>,
) -> Result<(), HandlerFailure> {
    if let Err(failure) = &mut outcome {
        failure.is_reported = failure.error.kind() != ErrorKind::Panic;
    }
    let error = outcome.as_ref().err().map(|failure| failure.error.clone());
    fail_or_log(fail, error);
    outcome
}

/// Fails the caller of a request. The texts of the error may come from code of the application.
fn fail_or_log(fail: FailCaller, error: Option<RpcError>) {
    if let Err(panic) = catch_panic(|| fail(error)) {
        log_limited!(|suppressed| tracing::error!(
            suppressed,
            panic,
            "encoding the failure of a request panicked"
        ));
    }
}

/// Decodes a request for an endpoint, and turns a panic of `decode` into an error.
///
/// The caller of `ask` receives the error, even if the context of the request exists already.
pub(crate) fn decode_request<M>(
    ask: AskId,
    decode: impl FnOnce() -> Result<M, RpcError>,
) -> Result<M, RpcError> {
    let scope = HandlerScope { ask, ..HandlerScope::NONE };
    let (decoded, deferred) = run_in_scope(scope, || catch_panic(decode));
    let decoded = decoded.unwrap_or_else(|panic| {
        Err(RpcError::new(ErrorKind::Panic, format!("RpcMessage::decode panicked: {panic}")))
    });
    if let Some(fail) = deferred {
        fail_or_log(fail, decoded.as_ref().err().cloned());
    }
    decoded
}

/// Drops a message that no endpoint will handle. If it is the ask `ask`, its caller receives
/// `error`.
pub(crate) fn reject_message<M>(ask: AskId, message: M, error: &RpcError) {
    let scope = HandlerScope { ask, ..HandlerScope::NONE };
    let (dropped, deferred) = run_in_scope(scope, || catch_panic(|| drop(message)));
    if let Some(fail) = deferred {
        fail_or_log(fail, Some(error.clone()));
    }
    if let Err(panic) = dropped {
        log_limited!(|suppressed| tracing::error!(
            suppressed,
            message_type = std::any::type_name::<M>(),
            panic,
            "the destructor of a rejected message panicked"
        ));
    }
}

fn panic_error(text: &str) -> RpcError {
    RpcError::new(ErrorKind::Panic, format!("the endpoint's handler panicked: {text}"))
}

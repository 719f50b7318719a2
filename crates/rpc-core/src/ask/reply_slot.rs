//! The one-shot slot between the reply context of a local ask and its caller.

use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::error::RpcError;
use crate::message_metadata::LocalCaller;
use crate::sync::Mutex;

/// Holds the result of one local ask; it is written once and taken once.
///
/// It is smaller than a oneshot channel, because the wakers and the result share their memory.
pub(crate) struct ReplySlot<T> {
    state: Mutex<ReplyState<T>>,
    /// The deadline of the ask.
    deadline: Option<Instant>,
}

enum ReplyState<T> {
    Pending {
        caller: Option<Waker>,
        /// Tasks that wait in [`RpcCallContext::cancelled`](crate::RpcCallContext::cancelled).
        cancel_wakers: Vec<Waker>,
    },
    Ready(Result<T, RpcError>),
    /// The result was taken, or the ask was cancelled.
    Closed,
}

impl<T> ReplySlot<T> {
    pub(crate) fn new(deadline: Option<Instant>) -> Self {
        let state = ReplyState::Pending { caller: None, cancel_wakers: Vec::new() };
        Self { state: Mutex::new(state), deadline }
    }

    /// Stores the result and wakes the caller. A cancelled ask discards it.
    pub(crate) fn complete(&self, result: Result<T, RpcError>) {
        let mut state = self.state.lock();
        if let ReplyState::Pending { caller, .. } = &mut *state {
            let caller = caller.take();
            let _cancel_wakers = std::mem::replace(&mut *state, ReplyState::Ready(result));
            drop(state);
            if let Some(caller) = caller {
                caller.wake();
            }
        }
    }

    /// Marks the ask as cancelled by its caller, and wakes the contexts that wait for that.
    pub(crate) fn cancel(&self) {
        let previous = std::mem::replace(&mut *self.state.lock(), ReplyState::Closed);
        // Outside the lock: wakers and the destructor of an unread reply may run any code.
        if let ReplyState::Pending { cancel_wakers, .. } = previous {
            cancel_wakers.into_iter().for_each(Waker::wake);
        }
    }

    /// Completes when the ask is no longer pending.
    pub(crate) fn poll_cancelled(&self, cx: &Context<'_>) -> Poll<()> {
        match &mut *self.state.lock() {
            ReplyState::Pending { cancel_wakers, .. } => {
                if !cancel_wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    cancel_wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            ReplyState::Ready(_) | ReplyState::Closed => Poll::Ready(()),
        }
    }

    /// Takes the result out, once.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<T, RpcError>> {
        let mut state = self.state.lock();
        if let ReplyState::Pending { caller, .. } = &mut *state {
            if !caller.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                let replaced = caller.replace(cx.waker().clone());
                drop(state);
                // Outside the lock, because the waker may own the last reference to a task.
                drop(replaced);
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, ReplyState::Closed) {
            ReplyState::Ready(result) => Poll::Ready(result),
            ReplyState::Pending { .. } | ReplyState::Closed => Poll::Pending,
        }
    }
}

impl<T: Send> LocalCaller for ReplySlot<T> {
    fn is_pending(&self) -> bool {
        matches!(*self.state.lock(), ReplyState::Pending { .. })
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

//! Where the answer to a local ask is left and waited for.

use std::task::{Context, Poll, Waker};

use tokio::time::Instant;

use crate::error::RpcError;
use crate::message_metadata::LocalCaller;
use crate::sync::Mutex;

/// One answer, written once and taken once. Smaller than a channel: the waker and the value share
/// their place.
pub(crate) struct ReplySlot<T> {
    state: Mutex<ReplyState<T>>,
    /// Until when the asker waits.
    deadline: Option<Instant>,
}

enum ReplyState<T> {
    Waiting {
        asker: Option<Waker>,
        answerers: Vec<Waker>,
    },
    Answered(Result<T, RpcError>),
    /// Answered and taken, or nobody waits any more.
    Closed,
}

impl<T> ReplySlot<T> {
    pub(crate) fn new(deadline: Option<Instant>) -> Self {
        Self {
            state: Mutex::new(ReplyState::Waiting { asker: None, answerers: Vec::new() }),
            deadline,
        }
    }

    /// Leaves the answer, unless the asker has gone.
    pub(crate) fn complete(&self, answer: Result<T, RpcError>) {
        let mut state = self.state.lock();
        if let ReplyState::Waiting { asker, .. } = &mut *state {
            let waker = asker.take();
            let _answerers = std::mem::replace(&mut *state, ReplyState::Answered(answer));
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The asker no longer waits.
    pub(crate) fn cancel(&self) {
        let unread = std::mem::replace(&mut *self.state.lock(), ReplyState::Closed);
        // Outside the lock, as is dropping an answer: its destructor may be anything.
        if let ReplyState::Waiting { answerers, .. } = unread {
            answerers.into_iter().for_each(Waker::wake);
        }
    }

    /// Ready once the asker no longer waits.
    pub(crate) fn poll_cancelled(&self, cx: &Context<'_>) -> Poll<()> {
        match &mut *self.state.lock() {
            ReplyState::Waiting { answerers, .. } => {
                if !answerers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    answerers.push(cx.waker().clone());
                }
                Poll::Pending
            }
            ReplyState::Answered(_) | ReplyState::Closed => Poll::Ready(()),
        }
    }

    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<T, RpcError>> {
        let mut state = self.state.lock();
        if let ReplyState::Waiting { asker, .. } = &mut *state {
            match asker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *asker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, ReplyState::Closed) {
            ReplyState::Answered(answer) => Poll::Ready(answer),
            ReplyState::Waiting { .. } | ReplyState::Closed => Poll::Pending,
        }
    }
}

impl<T: Send> LocalCaller for ReplySlot<T> {
    fn is_pending(&self) -> bool {
        matches!(*self.state.lock(), ReplyState::Waiting { .. })
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

//! Where the answer to a local ask is left and waited for.

use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use crate::error::RpcError;

/// One answer, written once and taken once. Smaller than a channel: the waker and the value share their place.
pub(crate) struct Slot<T>(Mutex<State<T>>);

enum State<T> {
    Waiting(Option<Waker>),
    Answered(Result<T, RpcError>),
    /// Taken, or nobody waits any more.
    Closed,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State::Waiting(None)))
    }

    /// Leaves the answer, unless the asker has gone.
    pub(crate) fn complete(&self, answer: Result<T, RpcError>) {
        let mut state = self.0.lock();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Answered(answer);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// The asker no longer waits.
    pub(crate) fn close(&self) {
        // An answer is dropped outside the lock: its destructor may be anything.
        let _unread = std::mem::replace(&mut *self.0.lock(), State::Closed);
    }

    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Result<T, RpcError>> {
        let mut state = self.0.lock();
        if let State::Waiting(waker) = &mut *state {
            match waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut *state, State::Closed) {
            State::Answered(answer) => Poll::Ready(answer),
            State::Waiting(_) | State::Closed => Poll::Pending,
        }
    }
}

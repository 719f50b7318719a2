//! How a ref reaches an inbox or an outbox without knowing either.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::RpcFuture;
use tokio::sync::futures::Notified;
use tokio::sync::oneshot;

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::origin::Origin;
use crate::sync::Notify;
use crate::wire::{self, proto};

/// The inbox of an endpoint of this environment.
pub(crate) trait Mailbox<M>: Send + Sync {
    /// Appends what `build` makes. It is called under the inbox's lock and only if the inbox takes the message, so
    /// a refused request is still the caller's.
    fn post(&self, origin: Origin, build: &mut dyn FnMut() -> Option<M>) -> Result<(), RpcError>;

    /// Until there may be room for a message, or there will never be.
    fn room(&self) -> BoxFuture<'_, ()>;
}

/// The way to one endpoint of another environment.
pub(crate) trait Wire: Send + Sync {
    /// Queues an envelope, to be sent in the order of these calls.
    fn send(&self, envelope: Bytes) -> Result<(), RpcError>;

    /// The same, and the answer's envelope. Queues when called; dropping the answer frees its waiter and tells the
    /// peer that nobody waits.
    fn ask(&self, envelope: Bytes) -> RemoteAnswer;

    /// Until there may be room in the queue, or there will never be.
    fn room(&self) -> BoxFuture<'_, ()>;
}

/// Room in the queue to an endpoint elsewhere.
#[derive(Default)]
pub(crate) struct Room {
    /// There may be some again.
    changed: Notify,
    /// Since it was last looked for, somebody has given up a request that is in the queue.
    given_up: AtomicBool,
}

impl Room {
    /// Tells those who wait that there may be some.
    pub(crate) fn freed(&self) {
        self.changed.notify_waiters();
    }

    /// Until it is told that there may be some, from the first poll on.
    pub(crate) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(crate) fn has_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether the queue is to be looked through for requests that nobody waits for.
    pub(crate) fn take_given_up(&self) -> bool {
        self.given_up.swap(false, Ordering::AcqRel)
    }

    fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.freed();
    }
}

/// The answer's envelope to come. Not a boxed future, as there is one per ask.
pub(crate) struct RemoteAnswer {
    state: State,
    peer: RpcAddress,
}

/// How an envelope that had to wait for a connection went on: sent, or why not.
pub(crate) type Dispatched = Result<RpcFuture, RpcError>;

enum State {
    Sent(RpcFuture),
    Queued(oneshot::Receiver<Dispatched>, Arc<Room>),
    Refused(RpcError),
}

impl RemoteAnswer {
    pub(crate) fn sent(answer: RpcFuture, peer: RpcAddress) -> Self {
        Self { state: State::Sent(answer), peer }
    }

    pub(crate) fn queued(
        dispatched: oneshot::Receiver<Dispatched>,
        room: Arc<Room>,
        peer: RpcAddress,
    ) -> Self {
        Self { state: State::Queued(dispatched, room), peer }
    }

    pub(crate) fn refused(error: RpcError, peer: RpcAddress) -> Self {
        Self { state: State::Refused(error), peer }
    }
}

impl Future for RemoteAnswer {
    type Output = Result<Bytes, RpcError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            this.state = match &mut this.state {
                State::Sent(answer) => {
                    let answer = ready!(Pin::new(answer).poll(cx));
                    return Poll::Ready(answer.map_err(|e| RpcError::from_transport(e, &this.peer)));
                }
                State::Queued(dispatched, _) => match ready!(Pin::new(dispatched).poll(cx)) {
                    Ok(Ok(answer)) => State::Sent(answer),
                    Ok(Err(error)) => State::Refused(error),
                    // The task that connects was dropped with its runtime.
                    Err(_) => {
                        let text = format!("the runtime shut down before {} was connected", this.peer);
                        State::Refused(RpcError::new(ErrorKind::Stopped, text).with_peer(&this.peer))
                    }
                },
                State::Refused(error) => return Poll::Ready(Err(error.clone())),
            };
        }
    }
}

/// The asker has given up: it timed out, or dropped its future.
impl Drop for RemoteAnswer {
    fn drop(&mut self) {
        match &mut self.state {
            State::Sent(answer) => cancel(answer),
            State::Queued(dispatched, room) => {
                dispatched.close();
                // It may have been sent without having been polled since.
                match dispatched.try_recv() {
                    Ok(Ok(answer)) => cancel(&answer),
                    Ok(Err(_)) => {}
                    Err(_) => room.give_up(),
                }
            }
            State::Refused(_) => {}
        }
    }
}

fn cancel(answer: &RpcFuture) {
    if let Some((client, request_id)) = answer.pending() {
        let notice = proto::notice::Notice::Cancel(proto::Cancel { request_id });
        // Where it cannot be sent, the peer will learn it from the request's deadline.
        let _ = client.send(wire::notice(notice));
    }
}

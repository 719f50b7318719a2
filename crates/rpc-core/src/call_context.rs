//! The handle that answers one ask.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use network_common::RpcResponseCallback;
use tokio::time::Instant;

use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::link::Link;
use crate::origin::{AskId, Asker as _, RemoteAsk, id_of};
use crate::running::{abandon, unanswered};
use crate::slot::Slot;
use crate::wire;

/// Answers one ask, now or later, from anywhere (`rpc 2`): it may be kept, moved to another task, or passed on.
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
    /// Boxed: messages, which carry this, are moved often.
    Remote {
        reply: Box<RemoteReply>,
        encode: fn(&T) -> Bytes,
    },
    /// The request was sent, nobody waits.
    Nobody,
}

/// The way back over the connection that brought a request.
pub(crate) struct RemoteReply {
    ask: RemoteAsk,
    callback: RpcResponseCallback,
    link: Arc<Link>,
}

impl fmt::Debug for RemoteReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteReply")
            .field("ask", &self.ask)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl RemoteReply {
    pub(crate) fn new(callback: RpcResponseCallback, link: Arc<Link>, deadline: Option<Instant>) -> Self {
        Self { ask: RemoteAsk::new(callback.request_id(), deadline), callback, link }
    }

    pub(crate) fn ask(&self) -> RemoteAsk {
        self.ask
    }

    /// The request reached no endpoint.
    pub(crate) fn refuse(self, error: &RpcError) {
        self.answer(wire::encode_refusal(error));
    }

    fn send(self, answer: Bytes) -> Result<(), RpcError> {
        let checked = wire::check_size("the answer", answer.len(), self.link.max_message());
        self.answer(match &checked {
            Ok(()) => answer,
            Err(error) => wire::encode_refusal(error),
        });
        checked
    }

    fn answer(self, answer: Bytes) {
        self.link.forget(self.ask.request);
        self.callback.reply(answer);
    }
}

impl<T: Send + 'static> RpcCallContext<T> {
    pub(crate) fn local(slot: Arc<Slot<T>>, sender: Option<RpcAddress>) -> Self {
        Self { asker: Some(Asker::Local(slot)), sender }
    }

    pub(crate) fn remote(
        reply: Box<RemoteReply>,
        encode: fn(&T) -> Bytes,
        sender: Option<RpcAddress>,
    ) -> Self {
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
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if the answer is too large to leave the process; the asker gets it too.
    pub fn reply(mut self, value: T) -> Result<(), RpcError> {
        match self.asker.take() {
            Some(Asker::Local(slot)) => slot.complete(Ok(value)),
            Some(Asker::Remote { reply, encode }) => return reply.send(encode(&value)),
            Some(Asker::Nobody) | None => {}
        }
        Ok(())
    }

    /// Fails the asker with `error`.
    ///
    /// In the same environment it gets the very object; across the network kind, text, causes' texts and
    /// [`is_retryable`](RpcError::is_retryable). An error of one of the endpoint's own requests becomes the source of
    /// a new one, which is not retryable unless the endpoint [says so](RpcError::retryable): this request was handled.
    pub fn send_failure(mut self, error: RpcError) {
        if let Some(asker) = self.asker.take() {
            asker.fail(error.in_own_name());
        }
    }

    /// How long the asker still waits, zero if its time is over. `None` for ever, or if nobody waits.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = match &self.asker {
            Some(Asker::Local(slot)) => slot.deadline(),
            Some(Asker::Remote { reply, .. }) => reply.ask.deadline,
            Some(Asker::Nobody) | None => None,
        };
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the asker has given up: it dropped or aborted its ask, its time is over, or the connection to it is
    /// lost. Always false for a request that was sent rather than asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        match &self.asker {
            Some(Asker::Local(slot)) => !slot.waits(),
            Some(Asker::Remote { reply, .. }) => {
                self.remaining() == Some(Duration::ZERO) || !reply.link.waits(reply.ask.request)
            }
            Some(Asker::Nobody) | None => false,
        }
    }

    /// Waits until the asker has given up; never ends for a request that was sent. To stop work that nobody needs:
    ///
    /// ```
    /// # async fn compute() -> u64 { 1 }
    /// # async fn handle(context: rpc_core::RpcCallContext<u64>) -> Result<(), rpc_core::RpcError> {
    /// tokio::select! {
    ///     result = compute() => context.reply(result),
    ///     () = context.cancelled() => Ok(()),
    /// }
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub async fn cancelled(&self) {
        match &self.asker {
            Some(Asker::Local(slot)) => poll_fn(|cx| slot.poll_closed(cx)).await,
            Some(Asker::Remote { reply, .. }) => {
                let given_up = reply.link.given_up(reply.ask.request);
                match reply.ask.deadline {
                    // It ends early either way.
                    Some(deadline) => drop(tokio::time::timeout_at(deadline, given_up).await),
                    None => given_up.await,
                }
            }
            Some(Asker::Nobody) | None => std::future::pending().await,
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
            // One whose text is too large is told so instead.
            Self::Remote { reply, .. } => drop(reply.send(wire::encode_failure(&error))),
            Self::Nobody => {}
        }
    }

    fn id(&self) -> AskId {
        match self {
            Self::Local(slot) => id_of(slot),
            Self::Remote { reply, .. } => reply.ask.id,
            Self::Nobody => 0,
        }
    }
}

impl<T: Send + 'static> Drop for RpcCallContext<T> {
    fn drop(&mut self) {
        let Some(asker) = self.asker.take() else { return };
        let id = asker.id();
        if id == 0 {
            return;
        }
        // A context again, so that the asker is not forgotten if the handler is dropped with its runtime.
        let context = Self { asker: Some(asker), sender: None };
        if let Some(fail) = abandon(id, Box::new(move |error| context.send_failure(error))) {
            fail(unanswered());
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RpcCallContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcCallContext").field("sender", &self.sender).finish_non_exhaustive()
    }
}

//! The handle that answers one ask.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::address::RpcAddress;
use crate::ask::ReplySlot;
use crate::ask::defer_failure;
use crate::error::{RpcError, no_reply_error};
use crate::message_metadata::{LocalCaller as _, ask_id};
use crate::peer::RemoteAsk;
use crate::wire;

/// Answers one ask, now or later, from anywhere (`rpc 2`): it may be kept, moved to another task,
/// or passed on.
///
/// Dropped without an answer it fails the asker. When it is dropped while the `receive` that got it
/// still runs, the asker gets what that `receive` ends with, so `?` inside `receive` reaches the
/// asker; dropped elsewhere, the asker learns at once that nobody will answer.
///
/// A request that was sent rather than asked has a context too; what is replied to it is discarded.
pub struct RpcCallContext<T: Send + 'static> {
    /// Taken by the reply.
    pub(crate) caller: Caller<T>,
    /// `None` for a remote ask, whose connection has it.
    pub(crate) sender: Option<RpcAddress>,
}

pub(crate) enum Caller<T> {
    /// The request was sent, or has its reply.
    None,
    Local(Arc<ReplySlot<T>>),
    Remote(Box<RemoteAsk>, fn(&T) -> Bytes),
}

impl<T: Send + 'static> RpcCallContext<T> {
    /// Answers the asker.
    ///
    /// Ok also when the asker has gone, timed out or never waited: an endpoint owes an answer, not
    /// its arrival.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Limit`](crate::ErrorKind::Limit) if the answer is too large to leave the
    /// process; the asker gets it too.
    pub fn reply(mut self, value: T) -> Result<(), RpcError> {
        match std::mem::replace(&mut self.caller, Caller::None) {
            Caller::None => {}
            Caller::Local(slot) => slot.complete(Ok(value)),
            Caller::Remote(ask, encode) => return ask.respond(encode(&value)),
        }
        Ok(())
    }

    /// Fails the asker with `error`.
    ///
    /// In the same environment it gets the very object; across the network kind, text, causes'
    /// texts and [`is_retryable`](RpcError::is_retryable). An error of one of the endpoint's own
    /// requests becomes the source of a new one, which is not retryable unless the endpoint [says
    /// so](RpcError::retryable): this request was handled.
    pub fn send_failure(mut self, error: RpcError) {
        let error = error.into_handler_failure();
        match std::mem::replace(&mut self.caller, Caller::None) {
            Caller::None => {}
            Caller::Local(slot) => slot.complete(Err(error)),
            // If the text is too large, that is what the caller gets instead.
            Caller::Remote(ask, _) => drop(ask.respond(wire::encode_failure(&error))),
        }
    }

    /// How long the asker still waits, zero if its time is over. `None` for ever, or if nobody
    /// waits.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let deadline = match &self.caller {
            Caller::None => None,
            Caller::Local(slot) => slot.deadline(),
            Caller::Remote(ask, _) => ask.key.deadline,
        };
        deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the asker has given up: it dropped or aborted its ask, its time is over, or the
    /// connection to it is lost. Always false for a request that was sent rather than asked.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        match &self.caller {
            Caller::None => false,
            Caller::Local(slot) => !slot.is_pending(),
            Caller::Remote(ask, _) => !ask.key.is_pending(&ask.connection),
        }
    }

    /// Waits until the asker has given up; never ends for a request that was sent. To stop work
    /// that nobody needs:
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
        match &self.caller {
            Caller::None => std::future::pending().await,
            Caller::Local(slot) => poll_fn(|cx| slot.poll_cancelled(cx)).await,
            Caller::Remote(ask, _) => match ask.key.deadline {
                // The deadline cancels, too.
                Some(deadline) => drop(tokio::time::timeout_at(deadline, ask.cancelled()).await),
                None => ask.cancelled().await,
            },
        }
    }

    /// Where the asker's environment listens; for one that does not, the address of its socket.
    /// `None` if the asker is in this environment and this environment does not listen.
    #[must_use]
    pub fn sender_address(&self) -> Option<&RpcAddress> {
        match &self.caller {
            Caller::Remote(ask, _) => Some(ask.connection.address()),
            Caller::Local(_) | Caller::None => self.sender.as_ref(),
        }
    }
}

impl<T: Send + 'static> Drop for RpcCallContext<T> {
    fn drop(&mut self) {
        let id = match &self.caller {
            Caller::None => return,
            Caller::Local(slot) => ask_id(slot),
            Caller::Remote(ask, _) => ask.key.id,
        };
        // A context again, so that the caller is failed also if the handler is dropped with its
        // runtime.
        let caller = std::mem::replace(&mut self.caller, Caller::None);
        let context = Self { caller, sender: None };
        if let Some(fail) = defer_failure(id, Box::new(move |error| context.send_failure(error))) {
            fail(no_reply_error());
        }
    }
}

impl<T: Send + 'static> fmt::Debug for RpcCallContext<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcCallContext")
            .field("sender", &self.sender_address())
            .finish_non_exhaustive()
    }
}

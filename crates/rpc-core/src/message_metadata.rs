//! What an inbox keeps beside a message: who waits for a reply, the trace span, the credit.

use std::fmt;
use std::sync::Arc;

use tokio::time::Instant;

use crate::peer::{MessagePermit, ReleasedVolume, RemoteAskKey};
use crate::trace::TraceSpan;

/// Identifies an ask among those whose contexts exist. Zero: no ask.
pub(crate) type AskId = u64;

/// Where a message came from.
pub(crate) enum MessageMetadata {
    /// Sent in this environment.
    LocalSend { span: TraceSpan },
    /// Asked in this environment.
    LocalAsk { caller: Arc<dyn LocalCaller>, span: TraceSpan },
    /// From another environment. `ask`: `None` for a one-way message.
    Remote { permit: MessagePermit, ask: Option<RemoteAskKey>, span: TraceSpan },
}

/// The caller of a local ask.
pub(crate) trait LocalCaller: Send + Sync {
    fn is_pending(&self) -> bool;
    fn deadline(&self) -> Option<Instant>;
}

/// The id of a local ask: an address that is unique as long as its context lives.
pub(crate) fn ask_id<C: ?Sized>(caller: &Arc<C>) -> AskId {
    Arc::as_ptr(caller).cast::<()>().addr() as AskId
}

impl MessageMetadata {
    pub(crate) fn ask_id(&self) -> AskId {
        match self {
            Self::LocalAsk { caller, .. } => ask_id(caller),
            Self::Remote { ask: Some(ask), .. } => ask.id,
            Self::LocalSend { .. } | Self::Remote { ask: None, .. } => 0,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::LocalAsk { caller, .. } => caller.deadline(),
            Self::Remote { ask: Some(ask), .. } => ask.deadline,
            Self::LocalSend { .. } | Self::Remote { ask: None, .. } => None,
        }
    }

    /// The span in which the message is handled.
    pub(crate) fn take_span(&mut self) -> TraceSpan {
        let (Self::LocalSend { span } | Self::LocalAsk { span, .. } | Self::Remote { span, .. }) =
            self;
        span.take()
    }

    /// The bytes that the message counts for in an inbox of `M`: those of its frame, or the size
    /// of the object.
    pub(crate) fn bytes<M>(&self) -> u64 {
        match self {
            Self::Remote { permit, .. } => permit.bytes(),
            Self::LocalSend { .. } | Self::LocalAsk { .. } => size_of::<M>() as u64,
        }
    }

    /// Whether the sender had credit, so that the inbox must accept the message.
    pub(crate) fn is_covered(&self) -> bool {
        matches!(self, Self::Remote { permit, .. } if permit.is_covered)
    }

    /// False for an ask whose caller no longer waits.
    pub(crate) fn is_pending(&self) -> bool {
        match self {
            Self::LocalAsk { caller, .. } => caller.is_pending(),
            Self::Remote { permit, ask: Some(ask), .. } => ask.is_pending(&permit.connection),
            Self::LocalSend { .. } | Self::Remote { ask: None, .. } => true,
        }
    }

    /// The message has been handled: its credit goes to `released`. False if it has none.
    pub(crate) fn release_with(self, released: &mut ReleasedVolume) -> bool {
        match self {
            Self::Remote { permit, .. } => {
                permit.release_with(released);
                true
            }
            Self::LocalSend { .. } | Self::LocalAsk { .. } => false,
        }
    }
}

impl fmt::Debug for MessageMetadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageMetadata").field("ask_id", &self.ask_id()).finish_non_exhaustive()
    }
}

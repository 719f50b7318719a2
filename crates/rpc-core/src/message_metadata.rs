//! What an inbox keeps beside a message: who waits for a reply, the trace span, the credit.

use std::sync::Arc;

use tokio::time::Instant;

use crate::peer::{MessagePermit, RemoteAskKey};
use crate::trace::TraceSpan;

/// Identifies an ask among those whose contexts exist. Zero: no ask.
pub(crate) type AskId = u64;

/// Where a message came from.
pub(crate) struct MessageMetadata {
    /// `None` for a one-way message.
    pub(crate) caller: Option<MessageCaller>,
    /// Of a message from another environment.
    pub(crate) permit: Option<MessagePermit>,
    /// The span in which the message is handled.
    pub(crate) span: TraceSpan,
}

/// The caller of an ask.
pub(crate) enum MessageCaller {
    Local(Arc<dyn LocalCaller>),
    Remote(RemoteAskKey),
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
        match &self.caller {
            None => 0,
            Some(MessageCaller::Local(caller)) => ask_id(caller),
            Some(MessageCaller::Remote(ask)) => ask.id,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.caller.as_ref()? {
            MessageCaller::Local(caller) => caller.deadline(),
            MessageCaller::Remote(ask) => ask.deadline,
        }
    }

    /// The bytes that the message counts for in an inbox of `M`: those of its frame, or the size
    /// of the object.
    pub(crate) fn bytes<M>(&self) -> u64 {
        self.permit.as_ref().map_or(size_of::<M>() as u64, MessagePermit::bytes)
    }

    /// False for an ask whose caller no longer waits.
    pub(crate) fn is_pending(&self) -> bool {
        match (&self.caller, &self.permit) {
            (Some(MessageCaller::Local(caller)), _) => caller.is_pending(),
            (Some(MessageCaller::Remote(ask)), Some(permit)) => ask.is_pending(&permit.connection),
            _ => true,
        }
    }
}

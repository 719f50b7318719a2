//! `MessageMetadata`: the caller, the credit and the trace span of a message in an inbox.

use std::sync::Arc;

use tokio::time::Instant;

use crate::peer::{MessagePermit, RemoteAskKey};
use crate::trace::TraceSpan;

/// Identifies an ask while its reply context exists. It is 0 for a one-way message.
pub(crate) type AskId = u64;

/// The caller, the credit and the trace span of one message.
pub(crate) struct MessageMetadata {
    /// `None` for a one-way message.
    pub(crate) caller: Option<MessageCaller>,
    /// The credit and bytes of a message from the network. `None` for a local one.
    pub(crate) permit: Option<MessagePermit>,
    /// The span in which the message is handled.
    pub(crate) span: TraceSpan,
}

/// The caller of an ask.
pub(crate) enum MessageCaller {
    Local(Arc<dyn LocalCaller>),
    Remote(RemoteAskKey),
}

/// The type-erased reply slot of a local ask.
pub(crate) trait LocalCaller: Send + Sync {
    fn is_pending(&self) -> bool;
    fn deadline(&self) -> Option<Instant>;
}

/// Returns the id of a local ask: the address of its reply slot, which its context keeps alive.
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

    /// Returns the bytes that the message counts for in an inbox of `M`.
    ///
    /// They are the bytes of its frame, or the size of the object for a local message.
    pub(crate) fn bytes<M>(&self) -> u64 {
        self.permit.as_ref().map_or(size_of::<M>() as u64, MessagePermit::bytes)
    }

    /// Returns false for an ask that was cancelled or has expired.
    pub(crate) fn is_pending(&self) -> bool {
        match (&self.caller, &self.permit) {
            (Some(MessageCaller::Local(caller)), _) => caller.is_pending(),
            (Some(MessageCaller::Remote(ask)), Some(permit)) => ask.is_pending(&permit.connection),
            _ => true,
        }
    }
}

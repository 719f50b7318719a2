//! Where a message came from, and whether anybody still waits for its answer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::time::Instant;

use crate::link::Link;
use crate::trace::TraceSpan;

/// Which ask a context answers: unique among those alive. Zero: none.
pub(crate) type AskId = u64;

/// What goes into the inbox beside a message.
pub(crate) enum Origin {
    /// Sent in this environment.
    Sent { span: TraceSpan },
    /// Asked in this environment.
    Asked { asker: Arc<dyn Asker>, span: TraceSpan },
    /// Came over a connection.
    Arrived { arrival: Arrival, ask: Option<RemoteAsk>, span: TraceSpan },
}

/// Who waits for a local answer.
pub(crate) trait Asker: Send + Sync {
    fn waits(&self) -> bool;

    /// Until when.
    fn deadline(&self) -> Option<Instant>;
}

/// The number of a local ask: the address of who waits for it, which is unique as long as its context lives.
pub(crate) fn id_of<A: ?Sized>(asker: &Arc<A>) -> AskId {
    Arc::as_ptr(asker).cast::<()>().addr() as AskId
}

/// A message from the network, counted in its environment's budget.
pub(crate) struct Arrival {
    link: Arc<Link>,
    bytes: u64,
}

/// A request from the network that is to be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RemoteAsk {
    pub(crate) id: AskId,
    /// Its id on the connection.
    pub(crate) request: i64,
    pub(crate) deadline: Option<Instant>,
}

impl Arrival {
    /// None if the environment's budget is used up.
    pub(crate) fn new(link: &Arc<Link>, bytes: u64) -> Option<Self> {
        link.budget().take(bytes).then(|| Self { link: Arc::clone(link), bytes })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        self.link.budget().put_back(self.bytes);
    }
}

impl RemoteAsk {
    pub(crate) fn new(request: i64, deadline: Option<Instant>) -> Self {
        // Odd numbers: those of local asks are addresses, which are even.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self { id: NEXT.fetch_add(2, Ordering::Relaxed), request, deadline }
    }
}

impl Origin {
    pub(crate) fn ask_id(&self) -> AskId {
        match self {
            Self::Sent { .. } => 0,
            Self::Asked { asker, .. } => id_of(asker),
            Self::Arrived { ask, .. } => ask.map_or(0, |ask| ask.id),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Sent { .. } => None,
            Self::Asked { asker, .. } => asker.deadline(),
            Self::Arrived { ask, .. } => ask.and_then(|ask| ask.deadline),
        }
    }

    /// The span to handle it in.
    pub(crate) fn take_span(&mut self) -> TraceSpan {
        let (Self::Sent { span } | Self::Asked { span, .. } | Self::Arrived { span, .. }) = self;
        span.take()
    }

    /// The connection it came over.
    pub(crate) fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Arrived { arrival, .. } => Some(&arrival.link),
            Self::Sent { .. } | Self::Asked { .. } => None,
        }
    }

    /// What it counts for in an inbox of `M`: the bytes of its frame, or else the size of the object itself.
    pub(crate) fn bytes<M>(&self) -> u64 {
        match self {
            Self::Arrived { arrival, .. } => arrival.bytes,
            Self::Sent { .. } | Self::Asked { .. } => size_of::<M>() as u64,
        }
    }

    /// False if it was asked and nobody waits for the answer any more.
    pub(crate) fn waits(&self) -> bool {
        match self {
            Self::Sent { .. } | Self::Arrived { ask: None, .. } => true,
            Self::Asked { asker, .. } => asker.waits(),
            Self::Arrived { arrival, ask: Some(ask), .. } => {
                ask.deadline.is_none_or(|deadline| Instant::now() < deadline)
                    && arrival.link.waits(ask.request)
            }
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("link", &self.link()).finish_non_exhaustive()
    }
}

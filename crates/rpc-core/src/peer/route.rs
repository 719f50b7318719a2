//! One route to an endpoint of a peer: its number, credit and queued messages.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use network_common::{RpcFuture, TransportClient};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::PeerConnection;
use super::credit::SendCredit;
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::limits::Volume;
use crate::peer_text::peer_name;
use crate::sync::Notify;
use crate::wire::proto::notice::Notice;
use crate::wire::{EncodedMessage, proto};

/// The sender's state of one route.
pub(super) struct Route {
    pub(super) endpoint: Arc<str>,
    pub(super) number: RouteNumber,
    pub(super) credit: SendCredit,
    /// Messages that wait for a connection, for the peer's Hello, for a number or for credit.
    pub(super) queue: VecDeque<QueuedMessage>,
    /// The volume of the queue.
    pub(super) volume: Volume,
    /// Notified when the queue has capacity again.
    pub(super) capacity: Arc<Notify>,
    /// Is true if an ask in the queue may be cancelled.
    pub(super) has_cancelled: bool,
    pub(super) refs: usize,
    /// The number of sweeps since the last message.
    pub(super) idle_sweeps: u8,
    /// The credit that a message has waited for since the last push, as flags.
    pub(super) blocked_by: u8,
}

/// The number of a route, and whether the route is open.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteNumber {
    /// The route has no number. Its next message opens it.
    Unopened,
    Open(u32),
    /// CloseRoute has been sent, and no reply has arrived.
    Closing(u32),
}

/// A message in the queue of a route.
pub(super) struct QueuedMessage {
    pub(super) message: EncodedMessage,
    /// The incarnation that the ref is bound to, or 0.
    pub(super) incarnation: u64,
    /// `None` for a one-way message.
    pub(super) caller: Option<QueuedResult>,
    /// The deadline of an ask. Its timeout is written when the message is pushed.
    pub(super) deadline: Option<Instant>,
}

/// Reports to the caller of a queued ask that it was sent, or the reason why it was not.
pub(super) type QueuedResult = oneshot::Sender<Result<RpcFuture, RpcError>>;

/// The results of queued messages. Their senders are notified without a lock.
#[derive(Default)]
pub(super) struct FlushOutcome {
    /// Messages that will not be sent, with the reason if they have one.
    pub(super) unsent: Vec<(QueuedMessage, Option<RpcError>)>,
    /// Asks that were sent.
    pub(super) sent: Vec<(QueuedResult, RpcFuture)>,
    /// The queues that have capacity again.
    pub(super) emptied: Vec<Arc<Notify>>,
}

impl Route {
    pub(super) fn new(endpoint: &Arc<str>) -> Self {
        Self {
            endpoint: Arc::clone(endpoint),
            number: RouteNumber::Unopened,
            credit: SendCredit::new(),
            queue: VecDeque::new(),
            volume: Volume::default(),
            capacity: Arc::default(),
            has_cancelled: false,
            refs: 0,
            idle_sweeps: 0,
            blocked_by: 0,
        }
    }

    /// Returns whether the route is open and its queue is empty.
    pub(super) fn is_open_and_empty(&self) -> bool {
        matches!(self.number, RouteNumber::Open(_)) && self.queue.is_empty()
    }

    /// Asks the peer to close an open route without queued messages.
    ///
    /// Nothing is sent over the route before the reply.
    pub(super) fn close(&mut self, connection: &Arc<PeerConnection>) {
        if let (true, RouteNumber::Open(route)) = (self.queue.is_empty(), self.number) {
            self.number = RouteNumber::Closing(route);
            // CloseRoute returns all credit. A reply that keeps the route open grants new credit.
            self.credit = SendCredit::none();
            connection.send_notice(Notice::CloseRoute(proto::CloseRoute { route }));
        }
    }
}

impl QueuedMessage {
    /// Returns whether the caller of a queued ask has cancelled it.
    pub(super) fn is_cancelled(&self) -> bool {
        self.caller.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

/// Sends an ask. Also returns whether it was sent. If not, the future reports the reason.
pub(super) fn push_ask(client: &TransportClient, frame: Bytes) -> (RpcFuture, bool) {
    let future = client.send_rpc(frame);
    let is_sent = future.pending_request().is_some();
    (future, is_sent)
}

/// Returns the error of a ref whose endpoint belonged to another process run than the peer's.
pub(crate) fn stale_incarnation_error(endpoint: &str, address: &RpcAddress) -> RpcError {
    let text = format!(
        "the endpoint {} belonged to an earlier run of the environment at {address}, which has \
         ended",
        peer_name(endpoint)
    );
    RpcError::new(ErrorKind::Stopped, text).with_peer(address)
}

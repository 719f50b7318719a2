//! The items of an inbox's queue: messages, connection events and the stop.

use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::message_metadata::MessageMetadata;

/// An item of the queue. The loop calls `on_start` without an item. `Stop` is the last item.
pub(crate) enum InboxItem<M> {
    Message { message: M, metadata: MessageMetadata },
    Event(ConnectionEvent),
    Stop,
}

/// An event of a connection, for the event handlers of the endpoints. It has the peer's address.
#[derive(Clone, Debug)]
pub(crate) enum ConnectionEvent {
    Connected(RpcAddress),
    Disconnected(RpcAddress),
    NetworkError(RpcError, RpcAddress),
    /// A one-way message was rejected by the peer, or was never sent.
    Undelivered(RpcError, RpcAddress),
}

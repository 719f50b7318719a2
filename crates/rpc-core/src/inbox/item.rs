//! The entries of the queue of an inbox, which senders add and the message loop takes out.

use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::message_metadata::MessageMetadata;

/// An entry of the queue. There is none for `on_start`, which the loop calls by itself.
pub(crate) enum InboxItem<M> {
    Message { message: M, metadata: MessageMetadata },
    Event(ConnectionEvent),
    Stop,
}

/// An event of a connection, for the event handlers of all endpoints.
#[derive(Clone, Debug)]
pub(crate) enum ConnectionEvent {
    Connected(RpcAddress),
    Disconnected(RpcAddress),
    NetworkError(RpcError, RpcAddress),
    Undelivered(RpcError, RpcAddress),
}

//! The items of an inbox's queue: messages, connection events and the stop.

use std::sync::Arc;

use crate::address::RpcAddress;
use crate::error::RpcError;
use crate::limits::ReservedBytes;
use crate::message_metadata::MessageMetadata;

/// An item of the queue. The loop calls `on_start` without an item. `Stop` is the last item.
pub(crate) enum InboxItem<M> {
    Message {
        message: M,
        metadata: MessageMetadata,
    },
    /// The bytes of the event are reserved until it has been handled.
    Event(ConnectionEvent, Arc<ReservedBytes>),
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

impl ConnectionEvent {
    /// The number of bytes of the texts of the event, which all queues share.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Connected(_) | Self::Disconnected(_) => 0,
            Self::NetworkError(error, _) | Self::Undelivered(error, _) => error.text_len() as u64,
        }
    }
}

//! What the transport calls: requests go to the dispatcher, connections become events.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use network_common::{ConnectionId, RpcHandler, RpcResponseCallback, TransportClient, TransportError};
use parking_lot::RwLock;
use prost::Message;

use crate::address::RpcAddress;
use crate::call_context::RemoteReply;
use crate::dispatcher::Dispatcher;
use crate::error::{ErrorKind, RpcError};
use crate::inbox::Event;
use crate::message::IncomingRequest;
use crate::wire::RequestView;

pub(crate) struct EnvHandler {
    dispatcher: Arc<Dispatcher>,
    peers: RwLock<HashMap<ConnectionId, Peer>>,
}

/// Who is at the other end of a connection.
struct Peer {
    socket: RpcAddress,
    /// Where it listens, once it has said so; with the text that said it, which every message repeats.
    told: Option<(String, RpcAddress)>,
}

impl EnvHandler {
    pub(crate) fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self { dispatcher, peers: RwLock::default() }
    }

    /// `reply` is still there if the message reached no endpoint.
    fn dispatch(
        &self,
        client: &TransportClient,
        message: Bytes,
        reply: &mut Option<RemoteReply>,
    ) -> Result<(), RpcError> {
        let mut request = RequestView::decode(message).map_err(|e| no_envelope(client, &e))?;
        let body = std::mem::take(&mut request.body);
        let texts = request.texts().map_err(|e| no_envelope(client, &e))?;
        let sender = self.sender(client, texts.sender);
        let incoming = IncomingRequest::new(texts.service, texts.method, body, sender, reply);
        self.dispatcher.deliver(texts.endpoint, incoming)
    }

    /// Who sent a message with `text` in its sender field.
    fn sender(&self, client: &TransportClient, text: &str) -> RpcAddress {
        if let Some(peer) = self.peers.read().get(&client.id()) {
            match &peer.told {
                Some((told, address)) if told == text => return address.clone(),
                _ if text.is_empty() => return peer.socket.clone(),
                _ => {}
            }
        }
        let Ok(address) = text.parse::<RpcAddress>() else {
            return client.peer_addr().into();
        };
        let first = self.peers.write().get_mut(&client.id()).is_some_and(|peer| {
            let first = peer.told.is_none();
            if first {
                peer.told = Some((text.to_owned(), address.clone()));
            }
            first
        });
        if first {
            self.dispatcher.post_to_all(&Event::Connected(address.clone()));
        }
        address
    }
}

fn no_envelope(client: &TransportClient, why: &dyn fmt::Display) -> RpcError {
    let text = format!("the message from {} is no envelope of this protocol: {why}", client.peer_addr());
    RpcError::new(ErrorKind::Decode, text)
}

impl RpcHandler for EnvHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let mut reply = Some(RemoteReply::new(callback));
        if let Err(error) = self.dispatch(client, message, &mut reply) {
            tracing::debug!(peer = %client.peer_addr(), %error, "request refused");
            if let Some(reply) = reply {
                reply.refuse(&error);
            }
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        if let Err(error) = self.dispatch(client, message, &mut None) {
            if error.kind() == ErrorKind::Stopped {
                tracing::debug!(peer = %client.peer_addr(), %error, "one-way message dropped");
            } else {
                tracing::warn!(peer = %client.peer_addr(), %error, "one-way message dropped");
            }
        }
    }

    fn channel_active(&self, client: &TransportClient) {
        let socket = RpcAddress::from(client.peer_addr());
        self.peers.write().insert(client.id(), Peer { socket: socket.clone(), told: None });
        self.dispatcher.post_to_all(&Event::Connected(socket));
    }

    fn channel_inactive(&self, client: &TransportClient) {
        let Some(peer) = self.peers.write().remove(&client.id()) else { return };
        self.dispatcher.post_to_all(&Event::Disconnected(peer.socket));
        if let Some((_, address)) = peer.told {
            self.dispatcher.post_to_all(&Event::Disconnected(address));
        }
    }

    fn exception_caught(&self, error: &TransportError, client: &TransportClient) {
        let addresses = {
            let peers = self.peers.read();
            let Some(peer) = peers.get(&client.id()) else { return };
            [Some(peer.socket.clone()), peer.told.as_ref().map(|(_, address)| address.clone())]
        };
        for address in addresses.into_iter().flatten() {
            let error = RpcError::from_transport(error.clone(), &address);
            self.dispatcher.post_to_all(&Event::NetworkError(error, address));
        }
    }
}

//! The transport's handler. It passes messages to endpoints and notices to the state of their
//! connection, and reports connections to endpoints as events.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
#[cfg(feature = "files")]
use network_common::StreamManager;
use network_common::{
    RefusedRequest, RpcHandler, RpcResponseCallback, TransportClient, TransportError, log_limited,
};
use prost::Message;
use tokio::time::Instant;

use super::Dispatcher;
use crate::error::{ErrorKind, RpcError};
#[cfg(feature = "files")]
use crate::files::FileRegistry;
use crate::inbox::ConnectionEvent;
use crate::peer::{Connections, InboundMessage, PeerConnection, RemoteAsk};
use crate::peer_text::peer_name;
use crate::wire::proto::notice::Notice;
use crate::wire::{self, MessageHeader, proto};

/// The handler of all connections of an environment.
pub(crate) struct EnvRpcHandler {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) connections: Arc<Connections>,
    #[cfg(feature = "files")]
    pub(crate) files: Arc<FileRegistry>,
}

impl EnvRpcHandler {
    /// Passes a message to the endpoint that its route leads to.
    ///
    /// # Errors
    ///
    /// The reason why the message was rejected. The caller then rejects `message.ask`.
    fn dispatch(&self, message: &mut InboundMessage<'_>) -> Result<(), RpcError> {
        let bytes = message.frame.len() as u64;
        let look_up = |name: &str| self.dispatcher.target(name);
        let (target, permit) = message.connection.receive(&message.header, bytes, look_up)?;
        message.permit = Some(permit);
        target.deliver(message)
    }

    /// Returns the state of the connection of `client`.
    fn connection(&self, client: &TransportClient) -> Result<Arc<PeerConnection>, RpcError> {
        self.connections.get(client).ok_or_else(|| {
            let text = format!("the connection from {} has ended", client.peer_addr());
            RpcError::new(ErrorKind::Network, text)
        })
    }

    /// Handles a one-way message, or a notice. Notifies the peer if the message is rejected.
    fn on_one_way(&self, client: &TransportClient, frame: &Bytes) -> Result<(), RpcError> {
        let connection = &self.connection(client)?;
        let header =
            MessageHeader::decode(frame).map_err(|error| malformed_error(connection, &error))?;
        if header.route == 0 {
            return self.on_notice(connection, header.body);
        }
        let (route, path) = (header.route, header.path);
        let mut message = InboundMessage { header, frame, connection, ask: None, permit: None };
        let dispatched = self.dispatch(&mut message);
        // Returns the credit, unless the inbox has taken the permit.
        drop(message);
        if let Err(error) = &dispatched {
            connection.send_undelivered(route, path, error);
        }
        dispatched
    }

    /// Handles a notice. Ignores one of a newer version.
    fn on_notice(&self, connection: &Arc<PeerConnection>, body: &[u8]) -> Result<(), RpcError> {
        let notice =
            proto::Notice::decode(body).map_err(|error| malformed_error(connection, &error))?;
        match notice.notice {
            Some(Notice::Hello(hello)) => {
                if let Some(address) = self.connections.on_hello(connection, &hello)? {
                    self.dispatcher.post_to_all(&ConnectionEvent::Connected(address));
                }
            }
            Some(Notice::Credit(credit)) => {
                if let Some(peer) = connection.route_owner() {
                    peer.on_credit(connection, &credit);
                }
            }
            Some(Notice::CloseRoute(close)) => connection.on_close_route(close.route),
            Some(Notice::RouteClosed(closed)) => {
                if let Some(peer) = connection.route_owner() {
                    peer.on_route_closed(connection, closed.route);
                }
            }
            Some(Notice::Cancel(cancel)) => connection.on_cancel(cancel.request_id),
            Some(Notice::Undelivered(undelivered)) => self.on_undelivered(connection, undelivered),
            None => {}
        }
        Ok(())
    }

    /// Reports a one-way message of this environment that the peer rejected.
    fn on_undelivered(&self, connection: &PeerConnection, undelivered: proto::Undelivered) {
        let proto::Undelivered { route, path, failure } = undelivered;
        let remote = connection.address().clone();
        let endpoint = connection.route_owner().and_then(|peer| peer.endpoint(route));
        let endpoint = endpoint.as_deref().unwrap_or("an unknown endpoint");
        let reason = wire::decode_failure(failure.unwrap_or_default());
        let (path, endpoint) = (peer_name(&path), peer_name(endpoint));
        let text = format!("{remote} rejected a message {path} to {endpoint}");
        let error = RpcError::new(reason.kind(), text).with_peer(&remote).with_source(reason);
        connection.shared.report_undelivered(error.mark_remote(), remote);
    }
}

/// Returns the error for a frame that is not a valid envelope.
fn malformed_error(connection: &PeerConnection, reason: &dyn fmt::Display) -> RpcError {
    let socket = &connection.socket;
    let text = format!("the message from {socket} is not a valid envelope: {reason}");
    RpcError::new(ErrorKind::Decode, text)
}

impl RpcHandler for EnvRpcHandler {
    fn receive(&self, client: &TransportClient, frame: Bytes, callback: RpcResponseCallback) {
        let connection = &match self.connection(client) {
            Ok(connection) => connection,
            Err(error) => return callback.fail(error),
        };
        let header = match MessageHeader::decode(&frame) {
            Ok(header) => header,
            Err(error) => return callback.fail(malformed_error(connection, &error)),
        };
        let deadline = header.timeout().and_then(|timeout| Instant::now().checked_add(timeout));
        let ask = Some(RemoteAsk::new(callback, connection, deadline));
        let mut message = InboundMessage { header, frame: &frame, connection, ask, permit: None };
        if let Err(error) = self.dispatch(&mut message) {
            tracing::debug!(
                peer = %client.peer_addr(),
                error = %format_args!("{error:#}"),
                "request rejected"
            );
            if let Some(ask) = message.ask.take() {
                ask.reject(&error);
            }
        }
    }

    fn receive_one_way(&self, client: &TransportClient, frame: Bytes) {
        if let Err(error) = self.on_one_way(client, &frame) {
            if error.kind() == ErrorKind::Stopped {
                tracing::debug!(
                    peer = %client.peer_addr(),
                    error = %format_args!("{error:#}"),
                    "one-way message rejected"
                );
            } else {
                log_limited!(|suppressed| tracing::warn!(suppressed, peer = %client.peer_addr(),
                    error = %format_args!("{error:#}"),
                    "one-way message rejected"));
            }
        }
    }

    #[cfg(feature = "files")]
    fn stream_manager(&self) -> &dyn StreamManager {
        &*self.files
    }

    fn on_connected(&self, client: &TransportClient) {
        if let Some(connection) = self.connections.add(client) {
            self.dispatcher.post_to_all(&ConnectionEvent::Connected(connection.socket.clone()));
        }
    }

    /// Rejects the message, and returns its credit. The start of its frame contains the route.
    fn on_refused_request(&self, client: &TransportClient, mut request: RefusedRequest) {
        let start = request.start().clone();
        let header = MessageHeader::decode_start(&start).ok().filter(|header| header.route != 0);
        let Some((connection, header)) = self.connection(client).ok().zip(header) else {
            // The route, whose credit was consumed, is not known.
            return client.close();
        };
        connection.refuse(header.route, request.message_len());
        let mut error = RpcError::new(ErrorKind::Limit, request.to_string());
        if request.is_retryable() {
            error = error.mark_retryable();
        }
        match request.take_callback() {
            Some(callback) => callback.reply(wire::encode_rejection(&error)),
            None => connection.send_undelivered(header.route, header.path, &error),
        }
    }

    /// Closes the connection: the skipped body contains the route whose credit was consumed.
    fn on_skipped_request(&self, client: &TransportClient) {
        client.close();
    }

    fn on_disconnected(&self, client: &TransportClient) {
        let Some(connection) = self.connections.remove(client) else { return };
        for address in connection.addresses() {
            self.dispatcher.post_to_all(&ConnectionEvent::Disconnected(address.clone()));
        }
    }

    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        let Some(connection) = self.connections.get(client) else { return };
        for address in connection.addresses() {
            let error = RpcError::from_transport(error.clone(), address);
            self.dispatcher.post_to_all(&ConnectionEvent::NetworkError(error, address.clone()));
        }
    }
}

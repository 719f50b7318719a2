//! What the transport calls: requests go to the dispatcher, connections become events.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use network_common::{RpcHandler, RpcResponseCallback, StreamManager, TransportClient, TransportError};
use prost::Message;

use crate::call_context::RemoteReply;
use crate::credit::Volume;
use crate::dispatcher::{Dispatcher, earlier_run};
use crate::error::{ErrorKind, RpcError};
use crate::file_server::Registry;
use crate::inbox::Event;
use crate::link::{Link, Links};
use crate::message::IncomingRequest;
use crate::origin::Arrival;
use crate::trace::Tracer;
use crate::wire::proto::notice::Notice;
use crate::wire::{self, Request, proto};

pub(crate) struct EnvHandler {
    dispatcher: Arc<Dispatcher>,
    links: Arc<Links>,
    tracer: Tracer,
    incarnation: u64,
    files: Arc<Registry>,
}

impl EnvHandler {
    pub(crate) fn new(
        dispatcher: Arc<Dispatcher>,
        links: Arc<Links>,
        tracer: Tracer,
        incarnation: u64,
        files: Arc<Registry>,
    ) -> Self {
        Self { dispatcher, links, tracer, incarnation, files }
    }

    /// `reply` is still there if the message reached no endpoint.
    fn dispatch(
        &self,
        link: &Arc<Link>,
        frame: &Bytes,
        request: &Request<'_>,
        reply: &mut Option<Box<RemoteReply>>,
    ) -> Result<(), RpcError> {
        let bytes = frame.len() as u64;
        let Some(arrival) = Arrival::new(link, bytes) else {
            link.grant(request.endpoint, Volume::message(bytes));
            return Err(self.budget_used_up(link));
        };
        link.set_incarnation(request.incarnation);
        let (sender, new) = link.sender_of(request.sender);
        if new {
            self.dispatcher.post_to_all(&Event::Connected(sender.clone()));
        }
        let delivered = if [0, self.incarnation].contains(&request.receiver_incarnation) {
            let incoming = IncomingRequest::new(request, frame, sender, reply);
            let span = self.tracer.arrived(request.endpoint, request.traceparent);
            self.dispatcher.deliver(request.endpoint, incoming, arrival, span)
        } else {
            Err(earlier_run(request.endpoint))
        };
        if delivered.is_err() {
            // It will not be handled, so its credit goes back now.
            link.grant(request.endpoint, Volume::message(bytes));
        }
        delivered
    }

    fn budget_used_up(&self, link: &Link) -> RpcError {
        let text = format!(
            "messages from the network hold all of the {} bytes that this environment has for them \
             (spark.rpc.inbox.maxTotalBytes)",
            link.budget().limit()
        );
        RpcError::new(ErrorKind::Limit, text).retryable()
    }

    /// What the peer says about the connection.
    fn notice(&self, client: &TransportClient, link: &Link, body: &[u8]) -> Result<(), RpcError> {
        let notice = proto::Notice::decode(body).map_err(|e| no_envelope(link, &e))?;
        match notice.notice {
            Some(Notice::Credit(credit)) => {
                let more = Volume::new(credit.messages, credit.bytes);
                self.links.granted(client, &credit.endpoint, more);
            }
            Some(Notice::Refused(refused)) => {
                let remote = link.listens_at().unwrap_or_else(|| link.socket()).clone();
                let proto::Refused { endpoint, service, method, failure } = refused;
                let why = wire::decode_failure(failure.unwrap_or_default());
                let text = format!(
                    "{remote} refused a message {service:.200}/{method:.200} to {endpoint:.200}: {why}"
                );
                let error = RpcError::new(why.kind(), text).with_peer(&remote).with_source(why);
                tracing::warn!(%error, "one-way message undelivered");
                self.links.count_undelivered();
                self.dispatcher.post_to_all(&Event::Undelivered(error.reported_by_peer(), remote));
            }
            Some(Notice::Cancel(cancel)) => link.give_up(cancel.request_id),
            Some(Notice::Forgo(forgo)) => self.dispatcher.forgo(&forgo.endpoint, link.id()),
            // One that only newer peers know.
            None => {}
        }
        Ok(())
    }

    fn link(&self, client: &TransportClient) -> Result<Arc<Link>, RpcError> {
        self.links.get(client).ok_or_else(|| {
            let text = format!("the connection from {} has ended", client.peer_addr());
            RpcError::new(ErrorKind::Network, text)
        })
    }

    fn one_way(&self, client: &TransportClient, message: Bytes) -> Result<(), RpcError> {
        let link = self.link(client)?;
        let mut recent = link.recent();
        let request = recent.read(&message).map_err(|e| no_envelope(&link, &e))?;
        if request.is_notice() {
            return self.notice(client, &link, request.body);
        }
        let dispatched = self.dispatch(&link, &message, &request, &mut None);
        if let Err(error) = &dispatched {
            link.tell(Notice::Refused(proto::Refused {
                endpoint: request.endpoint.to_owned(),
                service: request.service.to_owned(),
                method: request.method.to_owned(),
                failure: Some(wire::refusal(error)),
            }));
        }
        dispatched
    }
}

fn no_envelope(link: &Link, why: &dyn fmt::Display) -> RpcError {
    let text = format!("the message from {} is no envelope of this protocol: {why}", link.socket());
    RpcError::new(ErrorKind::Decode, text)
}

impl RpcHandler for EnvHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let link = match self.link(client) {
            Ok(link) => link,
            Err(error) => return callback.fail(error),
        };
        let mut recent = link.recent();
        let request = match recent.read(&message) {
            Ok(request) => request,
            Err(error) => return callback.fail(no_envelope(&link, &error)),
        };
        let mut reply = Some(Box::new(RemoteReply::new(callback, Arc::clone(&link), request.deadline())));
        if let Err(error) = self.dispatch(&link, &message, &request, &mut reply) {
            tracing::debug!(peer = %client.peer_addr(), %error, "request refused");
            if let Some(reply) = reply {
                reply.refuse(&error);
            }
        }
    }

    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        if let Err(error) = self.one_way(client, message) {
            if error.kind() == ErrorKind::Stopped {
                tracing::debug!(peer = %client.peer_addr(), %error, "one-way message dropped");
            } else {
                tracing::warn!(peer = %client.peer_addr(), %error, "one-way message dropped");
            }
        }
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        &*self.files
    }

    fn channel_active(&self, client: &TransportClient) {
        let link = self.links.add(client);
        self.dispatcher.post_to_all(&Event::Connected(link.socket().clone()));
    }

    fn channel_inactive(&self, client: &TransportClient) {
        let Some(link) = self.links.remove(client) else { return };
        self.dispatcher.post_to_all(&Event::Disconnected(link.socket().clone()));
        if let Some(address) = link.listens_at() {
            self.dispatcher.post_to_all(&Event::Disconnected(address.clone()));
        }
    }

    fn exception_caught(&self, error: &TransportError, client: &TransportClient) {
        let Some(link) = self.links.get(client) else { return };
        for address in [Some(link.socket()), link.listens_at()].into_iter().flatten() {
            let error = RpcError::from_transport(error.clone(), address);
            self.dispatcher.post_to_all(&Event::NetworkError(error, address.clone()));
        }
    }
}

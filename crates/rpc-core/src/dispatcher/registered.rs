//! An endpoint in the registry.

use std::any::{Any, TypeId};
use std::sync::Arc;

use network_common::ConnectionId;

use super::service_mismatch;
use crate::error::RpcError;
use crate::inbox::{Closed, Ending, Event, Inbox};
use crate::message::{IncomingRequest, RpcMessage};
use crate::metrics::EndpointSnapshot;
use crate::origin::{Arrival, Origin};
use crate::running::discard;
use crate::trace::TraceSpan;

/// An inbox whose message type is not known here.
pub(super) trait Registered: Send + Sync {
    fn services(&self) -> &'static [&'static str];
    fn deliver(
        self: Arc<Self>,
        request: IncomingRequest<'_>,
        arrival: Arrival,
        span: TraceSpan,
    ) -> Result<(), RpcError>;
    fn snapshot(&self) -> EndpointSnapshot;
    fn ending(&self) -> Ending;
    fn forgo(&self, connection: ConnectionId);
    fn post_event(&self, event: Event);
    fn stop(&self, why: Closed);
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn message_type(&self) -> (TypeId, &'static str);
}

impl<M: RpcMessage> Registered for Inbox<M> {
    fn services(&self) -> &'static [&'static str] {
        M::SERVICES
    }

    fn deliver(
        self: Arc<Self>,
        request: IncomingRequest<'_>,
        arrival: Arrival,
        span: TraceSpan,
    ) -> Result<(), RpcError> {
        if !M::SERVICES.contains(&request.service()) {
            return Err(service_mismatch(self.address(), &[request.service()], M::SERVICES));
        }
        let origin = Origin::Arrived { arrival, ask: request.ask(), span };
        let ask = origin.ask_id();
        let mut message = Some(M::decode(request)?);
        let appended = self.append(origin, || message.take());
        if let (Err(why), Some(message)) = (&appended, message) {
            discard(ask, message, why);
        }
        if let Some(link) = appended? {
            link.add_receiver(Arc::downgrade(&self) as _);
        }
        Ok(())
    }

    fn snapshot(&self) -> EndpointSnapshot {
        Self::snapshot(self)
    }

    fn ending(&self) -> Ending {
        Self::ending(self)
    }

    fn forgo(&self, connection: ConnectionId) {
        Self::forgo(self, connection);
    }

    fn post_event(&self, event: Event) {
        Self::post_event(self, event);
    }

    fn stop(&self, why: Closed) {
        Self::stop(self, why);
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn message_type(&self) -> (TypeId, &'static str) {
        (TypeId::of::<M>(), std::any::type_name::<M>())
    }
}

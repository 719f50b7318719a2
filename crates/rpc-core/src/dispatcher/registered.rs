//! An endpoint in the registry.

use std::any::{Any, TypeId};
use std::sync::Arc;

use crate::inbox::{Closed, Ending, Event, Inbox};
use crate::message::RpcMessage;
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;

/// An inbox whose message type is not known here.
pub(super) trait Registered: RouteTarget {
    fn services(&self) -> &'static [&'static str];
    fn snapshot(&self) -> EndpointSnapshot;
    fn ending(&self) -> Ending;
    fn post_event(&self, event: Event);
    fn stop(&self, why: Closed);
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn message_type(&self) -> (TypeId, &'static str);
}

impl<M: RpcMessage> Registered for Inbox<M> {
    fn services(&self) -> &'static [&'static str] {
        M::SERVICES
    }

    fn snapshot(&self) -> EndpointSnapshot {
        Self::snapshot(self)
    }

    fn ending(&self) -> Ending {
        Self::ending(self)
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

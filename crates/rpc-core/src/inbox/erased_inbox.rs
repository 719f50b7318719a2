//! The interface of an inbox for callers that do not know its message type.

use std::any::Any;
use std::sync::Arc;

use super::item::ConnectionEvent;
use super::state::{StopCause, StopCounts};
use crate::ask::ActorId;
use crate::limits::ReservedBytes;
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;

/// A type-erased [`Inbox`](super::Inbox), as the dispatcher stores it.
pub(crate) trait ErasedInbox: RouteTarget + Any {
    /// Identifies the endpoint among all actors of the process.
    fn id(&self) -> ActorId;
    /// Returns the names of the services of the endpoint.
    fn services(&self) -> &'static [&'static str];
    fn snapshot(&self) -> EndpointSnapshot;
    fn stop_counts(&self) -> StopCounts;
    /// Queues an event, whose bytes are `reserved` until it has been handled.
    fn post_event(&self, event: ConnectionEvent, reserved: Arc<ReservedBytes>);
    /// Rejects new messages, and ends the loop after the queued ones and `on_stop`.
    ///
    /// Only the first call has an effect.
    fn stop(&self, cause: StopCause);
    /// Returns the name of the message type for error texts.
    fn message_type(&self) -> &'static str;
}

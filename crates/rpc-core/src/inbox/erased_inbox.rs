//! An endpoint in the registry.

use std::any::Any;

use crate::inbox::{ConnectionEvent, StopCause, StopCounts};
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;

/// An inbox whose message type is not known here.
pub(crate) trait ErasedInbox: RouteTarget + Any {
    fn services(&self) -> &'static [&'static str];
    fn snapshot(&self) -> EndpointSnapshot;
    fn stop_counts(&self) -> StopCounts;
    fn post_event(&self, event: ConnectionEvent);
    fn stop(&self, why: StopCause);
    fn message_type(&self) -> &'static str;
}

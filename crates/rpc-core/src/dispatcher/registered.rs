//! An endpoint in the registry.

use std::any::Any;

use crate::inbox::{Closed, Ending, Event};
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;

/// An inbox whose message type is not known here.
pub(crate) trait Registered: RouteTarget + Any {
    fn services(&self) -> &'static [&'static str];
    fn snapshot(&self) -> EndpointSnapshot;
    fn ending(&self) -> Ending;
    fn post_event(&self, event: Event);
    fn stop(&self, why: Closed);
    fn message_type(&self) -> &'static str;
}

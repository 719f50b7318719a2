//! Propagates distributed traces in the envelopes of messages.

use std::fmt;
use std::sync::Arc;

use tracing::Span;

/// Connects messages to a distributed tracing system, such as OpenTelemetry.
///
/// Pass one to [`RpcEnvBuilder::trace_propagator`](crate::RpcEnvBuilder::trace_propagator). The
/// sender calls [`current_traceparent`](Self::current_traceparent) for each message and sends the
/// result in the envelope. The receiver runs the handler of the message in the span that
/// [`start_span`](Self::start_span) returns.
///
/// ```
/// use rpc_core::TracePropagator;
/// use tracing::{Span, info_span};
///
/// /// Logs the trace of each message. With OpenTelemetry, `inject` and `extract` go here.
/// struct LogTraces;
///
/// impl TracePropagator for LogTraces {
///     fn current_traceparent(&self) -> Option<String> {
///         Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned())
///     }
///
///     fn start_span(&self, endpoint: &str, traceparent: &str) -> Span {
///         info_span!("receive", endpoint, traceparent)
///     }
/// }
/// ```
pub trait TracePropagator: Send + Sync + 'static {
    /// Returns the trace context of the calling code in the format of W3C `traceparent`.
    ///
    /// For example `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`. `None` if the code is
    /// not traced.
    #[must_use]
    fn current_traceparent(&self) -> Option<String>;

    /// Returns the span in which `endpoint` handles a message with this `traceparent`.
    ///
    /// `traceparent` comes from the sender unchecked. It has at most 256 bytes.
    #[must_use]
    fn start_span(&self, endpoint: &str, traceparent: &str) -> Span;
}

/// The span of a message. Boxed, because most messages are not traced.
pub(crate) type TraceSpan = Option<Box<Span>>;

/// The propagator of an environment, if its builder received one.
#[derive(Clone, Default)]
pub(crate) struct Tracer(pub(crate) Option<Arc<dyn TracePropagator>>);

/// Longer values are ignored. Those of W3C have 55 bytes.
const MAX_TRACEPARENT: usize = 256;

impl Tracer {
    /// Returns the trace context of the calling code.
    pub(crate) fn current_traceparent(&self) -> Option<String> {
        self.0.as_ref()?.current_traceparent()
    }

    /// Starts the span of a message from the network.
    pub(crate) fn start_remote_span(&self, endpoint: &str, traceparent: &str) -> TraceSpan {
        let is_traced = !traceparent.is_empty() && traceparent.len() <= MAX_TRACEPARENT;
        self.0
            .as_ref()
            .filter(|_| is_traced)
            .map(|propagator| Box::new(propagator.start_span(endpoint, traceparent)))
    }

    /// Starts the span of a message that the calling code sends to a local endpoint.
    pub(crate) fn start_local_span(&self, endpoint: &str) -> TraceSpan {
        let propagator = self.0.as_ref()?;
        Some(Box::new(propagator.start_span(endpoint, &propagator.current_traceparent()?)))
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

//! Distributed traces that go through messages.

use std::fmt;
use std::sync::Arc;

use tracing::Span;

/// Carries traces along with messages, for a tracing system that has them: give one to
/// [`RpcEnvBuilder::trace_context`](crate::RpcEnvBuilder::trace_context).
///
/// When a message is sent or asked, [`current`](Self::current) tells where the caller is in a
/// trace. That travels in the envelope, and around the `receive` that handles the message stands
/// the span that [`receive`](Self::receive) makes. With OpenTelemetry both are a few lines: a
/// propagator's `inject` of the current span's context, and a span whose parent is what it
/// `extract`s.
pub trait TracePropagator: Send + Sync + 'static {
    /// The place of the calling code in its trace, as the W3C header `traceparent` has it:
    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`. None if it is not traced.
    fn current_traceparent(&self) -> Option<String>;

    /// The span in which the endpoint named `endpoint` handles a message that came with
    /// `traceparent`. That is whatever the sender wrote, of at most 256 bytes.
    fn start_span(&self, endpoint: &str, traceparent: &str) -> Span;
}

/// Of a message that is traced. Boxed, as most are not.
pub(crate) type TraceSpan = Option<Box<Span>>;

/// What the environment's builder was given.
#[derive(Clone, Default)]
pub(crate) struct Tracer(pub(crate) Option<Arc<dyn TracePropagator>>);

/// Longer ones are not W3C's, and nobody's to keep.
const MAX_TRACEPARENT: usize = 256;

impl Tracer {
    /// Where the caller is.
    pub(crate) fn current(&self) -> Option<String> {
        self.0.as_ref()?.current_traceparent()
    }

    /// For a message to `endpoint` that came with `traceparent`.
    pub(crate) fn arrived(&self, endpoint: &str, traceparent: &str) -> TraceSpan {
        let known = !traceparent.is_empty() && traceparent.len() <= MAX_TRACEPARENT;
        self.0
            .as_ref()
            .filter(|_| known)
            .map(|context| Box::new(context.start_span(endpoint, traceparent)))
    }

    /// For a message that the caller leaves in an inbox of this environment.
    pub(crate) fn local(&self, endpoint: &str) -> TraceSpan {
        let context = self.0.as_ref()?;
        Some(Box::new(context.start_span(endpoint, &context.current_traceparent()?)))
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.is_some()).finish()
    }
}

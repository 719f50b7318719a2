//! Propagation of `traceparent` with messages, within an environment and to another one.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{Greeting, HelloMessage, address, hi, next, soon};
use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint, TracePropagator};
use tokio::sync::mpsc;
use tracing::Span;
use tracing_subscriber::registry::Registry;

tokio::task_local! {
    static PARENT: String;
}

/// A tracing system: the current parent is a task local, and each received message gets a span.
struct Propagator(mpsc::UnboundedSender<String>);

impl TracePropagator for Propagator {
    fn current_traceparent(&self) -> Option<String> {
        PARENT.try_with(Clone::clone).ok()
    }

    fn start_span(&self, endpoint: &str, traceparent: &str) -> Span {
        let _ = self.0.send(format!("{endpoint} {traceparent}"));
        tracing::info_span!("receive", traceparent)
    }
}

/// An endpoint that replies with the name of its current span.
struct RepliesWithSpan;

impl ThreadSafeRpcEndpoint for RepliesWithSpan {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        tokio::task::yield_now().await;
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        let text = Span::current()
            .metadata()
            .map(|metadata| metadata.name().to_owned())
            .unwrap_or_default();
        context.reply(Greeting { text })
    }
}

#[tokio::test]
async fn traceparent_is_propagated_locally_and_remotely() {
    let _subscriber = tracing::subscriber::set_default(Registry::default());
    let (tx, mut received) = mpsc::unbounded_channel();
    let server = RpcEnv::builder("server").bind("127.0.0.1:0");
    let server = server.trace_propagator(Propagator(tx.clone())).start().await.unwrap();
    let client = RpcEnv::builder("client")
        .client_mode()
        .trace_propagator(Propagator(tx))
        .start()
        .await
        .unwrap();
    let local = server.setup_endpoint("traced", RepliesWithSpan).unwrap();
    let remote =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "traced")).await.unwrap();
    for endpoint in [&local, &remote] {
        let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let asked = PARENT.scope(traceparent.to_owned(), async { endpoint.ask(hi("neo")).await });
        assert_eq!(soon(asked).await.unwrap().text, "receive");
        assert_eq!(next(&mut received).await, format!("traced {traceparent}"));
        // A message without a traceparent gets no span.
        assert_eq!(soon(endpoint.ask(hi("neo"))).await.unwrap().text, "");
        // A value that is too long for a traceparent is dropped.
        let asked = PARENT.scope("x".repeat(1000), async { remote.ask(hi("neo")).await });
        assert_eq!(soon(asked).await.unwrap().text, "");
    }
    assert!(received.try_recv().is_err());
}

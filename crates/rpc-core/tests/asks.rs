//! What askers can do besides waiting: abort, block, ask again; and asks that would wait for themselves.

mod common;

use std::error::Error;
use std::fmt;

use common::{Greeting, HelloMessage, address, client, hi, next, server, soon};
use rpc_core::{EndpointContext, ErrorKind, RpcCallContext, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::mpsc;

/// Hands what it is asked to the test.
struct HandOver(mpsc::UnboundedSender<RpcCallContext<Greeting>>);

impl HandOver {
    fn new() -> (Self, mpsc::UnboundedReceiver<RpcCallContext<Greeting>>) {
        let (contexts, received) = mpsc::unbounded_channel();
        (Self(contexts), received)
    }
}

impl ThreadSafeRpcEndpoint for HandOver {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        if let HelloMessage::SayHi(_, context) = message {
            self.0.send(context).map_err(RpcError::application)?;
        }
        Ok(())
    }
}

#[derive(Debug)]
struct StageCancelled(u32);
impl fmt::Display for StageCancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {} was cancelled", self.0)
    }
}
impl Error for StageCancelled {}

#[tokio::test]
async fn rpc_env_07_ask_a_message_abort() {
    let (server, client) = (server().await, client().await);
    let (endpoint, mut contexts) = HandOver::new();
    let local = server.setup_endpoint("slow", endpoint).unwrap();
    let remote = soon(client.setup_endpoint_ref(address(&server), "slow")).await.unwrap();
    for endpoint in [local, remote] {
        let mut ask = endpoint.ask(hi("neo"));
        let abort = ask.abort_handle();
        let waiting = tokio::spawn(ask);
        let context = next(&mut contexts).await;

        let also = abort.clone();
        std::thread::spawn(move || also.abort(StageCancelled(7))).join().unwrap();
        abort.abort("only the first counts");
        let error = soon(waiting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Aborted);
        assert_eq!(error.to_string(), format!("the ask of {endpoint} was aborted: stage 7 was cancelled"));
        assert_eq!(error.source().and_then(|e| e.downcast_ref::<StageCancelled>()).map(|e| e.0), Some(7));
        assert!(!error.is_retryable(), "it may be running");
        assert_eq!(error.peer(), Some(endpoint.to_string().as_str()));

        context.reply(Greeting::default()).expect("a late answer is no error");
        let mut ask = endpoint.ask(hi("trinity"));
        let abort = ask.abort_handle();
        next(&mut contexts).await.reply(Greeting { text: "here".to_owned() }).unwrap();
        assert_eq!(soon(&mut ask).await.unwrap().text, "here");
        abort.abort("too late");
    }
}

#[tokio::test]
async fn an_ask_aborted_before_its_first_poll_fails_too() {
    let env = client().await;
    let (endpoint, mut contexts) = HandOver::new();
    let endpoint = env.setup_endpoint("slow", endpoint).unwrap();
    let mut ask = endpoint.ask(hi("neo"));
    ask.abort_handle().abort("no longer needed");
    assert_eq!(soon(ask).await.unwrap_err().kind(), ErrorKind::Aborted);
    next(&mut contexts).await;
}

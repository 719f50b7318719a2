//! Endpoints, environments and waits that several test files use.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::future::Future;
use std::time::Duration;

use rpc_core::{
    EndpointContext, RpcAddress, RpcCallContext, RpcConf, RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

pub mod envelope;

pub mod hello {
    include!("../generated/hello.rs");
}

pub use hello::{Greeting, HelloMessage, SayBye, SayHi};

/// An endpoint of the service `hello.Hello` that replies to both rpcs.
pub struct Hello;

impl ThreadSafeRpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => {
                context.reply(Greeting { text: format!("hi, {}", hi.msg) })
            }
            HelloMessage::SayBye(bye, context) => {
                context.reply(Greeting { text: format!("bye, {}", bye.msg) })
            }
        }
    }
}

/// An endpoint that sends the context of each message to the test and does not reply.
pub struct Keep(pub mpsc::UnboundedSender<RpcCallContext<Greeting>>);

impl ThreadSafeRpcEndpoint for Keep {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let (HelloMessage::SayHi(_, context) | HelloMessage::SayBye(_, context)) = message;
        self.0.send(context).map_err(RpcError::application)
    }
}

pub fn hi(msg: &str) -> SayHi {
    SayHi { msg: msg.to_owned() }
}

/// An endpoint that sends the errors of undelivered messages, with the peer, to the test.
pub struct UndeliveredWatch(pub mpsc::UnboundedSender<(RpcError, RpcAddress)>);

impl ThreadSafeRpcEndpoint for UndeliveredWatch {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        _: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }

    async fn on_undelivered(
        &mut self,
        error: RpcError,
        remote: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        self.0.send((error, remote)).map_err(RpcError::application)
    }
}

pub fn bye(msg: &str) -> SayBye {
    SayBye { msg: msg.to_owned() }
}

pub async fn client() -> RpcEnv {
    RpcEnv::builder("client").client_mode().start().await.unwrap()
}

pub async fn server() -> RpcEnv {
    RpcEnv::builder("server").bind("127.0.0.1:0").start().await.unwrap()
}

pub fn address(env: &RpcEnv) -> RpcAddress {
    env.address().expect("the environment listens").clone()
}

pub fn setting(key: &str, value: &str) -> RpcConf {
    RpcConf::new().with(key, value).unwrap()
}

/// Awaits `future` for at most 10 s, then fails the test.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .expect("the future did not complete within 10 s")
}

/// Waits for the next event that an endpoint sends to the test.
pub async fn next<T>(events: &mut mpsc::UnboundedReceiver<T>) -> T {
    soon(events.recv()).await.expect("the endpoint was dropped")
}

//! What errors say to whom.

mod common;

use std::error::Error;

use bytes::Bytes;
use common::{HelloMessage, address, bye, client, hi, server, soon};
use network_common::{
    RpcHandler, RpcResponseCallback, TransportClient, TransportConf, TransportContext,
};
use rpc_core::{
    EndpointContext, ErrorKind, RpcAddress, RpcEndpointRef, RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};

/// Fails its request with what its own request to another endpoint ended with.
struct Forwards {
    to: RpcEndpointRef<HelloMessage>,
    own_word: bool,
}

impl ThreadSafeRpcEndpoint for Forwards {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => match self.to.ask(hi).await {
                Ok(greeting) => context.reply(greeting),
                Err(error) if self.own_word => Err(error.retryable()),
                Err(error) => Err(error),
            },
            HelloMessage::SayBye(bye, context) => {
                match self.to.ask(bye).await {
                    Ok(greeting) => context.reply(greeting)?,
                    Err(error) => context.send_failure(error),
                }
                Ok(())
            }
        }
    }
}

/// A request that was handled may not be repeated because one that its handler made may be.
#[tokio::test]
async fn nested_ask_error_reaches_caller_as_handler_failure() {
    struct TooBusy;
    impl ThreadSafeRpcEndpoint for TooBusy {
        type Message = HelloMessage;
        async fn receive(
            &mut self,
            _: HelloMessage,
            _: &EndpointContext<HelloMessage>,
        ) -> Result<(), RpcError> {
            Err(RpcError::application("too busy").retryable())
        }
    }
    let (server, client) = (server().await, client().await);
    let near = server.setup_endpoint("busy", TooBusy).unwrap();
    let far =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "busy")).await.unwrap();
    assert!(soon(near.ask(hi("x"))).await.unwrap_err().is_retryable(), "it says so itself");
    for (name, to) in [("near", near), ("far", far)] {
        let behind = to.to_string();
        let forwards =
            server.setup_endpoint(name, Forwards { to: to.clone(), own_word: false }).unwrap();
        let remote =
            soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), name)).await.unwrap();
        for asked in [forwards, remote] {
            let by_question_mark = soon(asked.ask(hi("x"))).await.unwrap_err();
            let by_send_failure = soon(asked.ask(bye("x"))).await.unwrap_err();
            for error in [by_question_mark, by_send_failure] {
                assert!(!error.is_retryable(), "{name}: the handler ran");
                assert_eq!(error.to_string(), "too busy");
                assert_ne!(error.peer(), Some(behind.as_str()), "{name}");
                assert_eq!(error.kind(), ErrorKind::Application);
            }
        }
        let own_word = format!("{name}-own-word");
        let forwards = server.setup_endpoint(&own_word, Forwards { to, own_word: true }).unwrap();
        let error = soon(forwards.ask(hi("x"))).await.unwrap_err();
        assert!(error.is_retryable(), "the handler says so itself");
        assert_ne!(error.peer(), Some(behind.as_str()));
    }
}

/// Answers every request with an error of many causes.
struct Nested(usize);

impl RpcHandler for Nested {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        // Field 3 of a Failure, empty; and the Failure as field 2 of the Answer.
        let mut length = 2 * self.0;
        let mut answer = vec![2 << 3 | 2];
        while length >= 0x80 {
            answer.push(length as u8 | 0x80);
            length >>= 7;
        }
        answer.push(length as u8);
        answer.extend(std::iter::repeat_n([3 << 3 | 2, 0], self.0).flatten());
        callback.reply(answer);
    }
}

#[tokio::test]
async fn error_with_200000_causes_is_truncated() {
    let context = TransportContext::new(TransportConf::new("rpc"), Nested(200_000));
    let server = context.create_server(("127.0.0.1", 0)).await.unwrap();
    let client = client().await;
    let there = RpcAddress::new("127.0.0.1", server.local_addr().port());
    let error = soon(client.setup_endpoint_ref::<HelloMessage>(there, "x")).await.unwrap_err();
    let causes = std::iter::successors(error.source(), |&error| error.source()).count();
    assert!((1..100).contains(&causes), "{causes}");
}

/// Takes its time, and then tells that it was too long.
struct Late;

impl RpcHandler for Late {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        // On the asker's own thread: by the time it is polled again its time is over too.
        std::thread::sleep(std::time::Duration::from_millis(20));
        callback.reply(&b"\x12\x08\x08\x04\x12\x04over"[..]);
    }
}

#[tokio::test]
async fn rpc_env_33_timeout_reported_by_peer_names_local_setting() {
    let context = TransportContext::new(TransportConf::new("rpc"), Late);
    let server = context.create_server(("127.0.0.1", 0)).await.unwrap();
    let conf = common::setting("spark.rpc.lookupTimeout", "5ms");
    let client = RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap();
    let there = RpcAddress::new("127.0.0.1", server.local_addr().port());
    let error = soon(client.setup_endpoint_ref::<HelloMessage>(there, "x")).await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Timeout && error.is_timeout() && !error.is_remote(),
        "{error:?}"
    );
    assert_eq!(error.to_string().matches("spark.rpc.lookupTimeout").count(), 1, "{error}");
}

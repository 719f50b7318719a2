//! Errors that cross endpoints or the network: text, kind and retryability. The peers are other
//! endpoints, and transport servers with hand-written responses.

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

/// An endpoint that forwards each request, and fails with the error of the nested ask.
struct Forwards {
    to: RpcEndpointRef<HelloMessage>,
    marks_retryable: bool,
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
                Err(error) if self.marks_retryable => Err(error.retryable()),
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

/// A retryable error of a nested ask does not make the outer request retryable.
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
    let local = server.setup_endpoint("busy", TooBusy).unwrap();
    let remote =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "busy")).await.unwrap();
    assert!(
        soon(local.ask(hi("x"))).await.unwrap_err().is_retryable(),
        "the endpoint marked the error as retryable"
    );
    for (name, to) in [("local", local), ("remote", remote)] {
        let nested_peer = to.to_string();
        let forwards = server
            .setup_endpoint(name, Forwards { to: to.clone(), marks_retryable: false })
            .unwrap();
        let remote =
            soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), name)).await.unwrap();
        for outer in [forwards, remote] {
            let by_question_mark = soon(outer.ask(hi("x"))).await.unwrap_err();
            let by_send_failure = soon(outer.ask(bye("x"))).await.unwrap_err();
            for error in [by_question_mark, by_send_failure] {
                assert!(!error.is_retryable(), "{name}: the handler ran");
                assert_eq!(error.to_string(), "too busy");
                assert_ne!(error.peer(), Some(nested_peer.as_str()), "{name}");
                assert_eq!(error.kind(), ErrorKind::Application);
            }
        }
        let marks_retryable = format!("{name}-marks-retryable");
        let forwards = server
            .setup_endpoint(&marks_retryable, Forwards { to, marks_retryable: true })
            .unwrap();
        let error = soon(forwards.ask(hi("x"))).await.unwrap_err();
        assert!(error.is_retryable(), "the handler marked the error as retryable");
        assert_ne!(error.peer(), Some(nested_peer.as_str()));
    }
}

/// A handler that responds to every request with an error that has this number of causes.
struct ManyCauses(usize);

impl RpcHandler for ManyCauses {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        // The response is field 2, a Failure, with an empty field 3 (a cause) for each cause.
        let mut length = 2 * self.0;
        let mut response = vec![2 << 3 | 2];
        while length >= 0x80 {
            response.push(length as u8 | 0x80);
            length >>= 7;
        }
        response.push(length as u8);
        response.extend(std::iter::repeat_n([3 << 3 | 2, 0], self.0).flatten());
        callback.reply(response);
    }
}

#[tokio::test]
async fn error_with_200000_causes_is_truncated() {
    let context = TransportContext::new(TransportConf::new("rpc"), ManyCauses(200_000));
    let server = context.create_server(("127.0.0.1", 0)).await.unwrap();
    let client = client().await;
    let there = RpcAddress::new("127.0.0.1", server.local_addr().port());
    let error = soon(client.setup_endpoint_ref::<HelloMessage>(there, "x")).await.unwrap_err();
    let causes = std::iter::successors(error.source(), |&error| error.source()).count();
    assert!((1..100).contains(&causes), "{causes}");
}

/// A handler that blocks for 20 ms and then responds with a failure of the kind timeout.
struct RespondsLate;

impl RpcHandler for RespondsLate {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        // This blocks the caller's thread, so that the local deadline has also passed at its next
        // poll.
        std::thread::sleep(std::time::Duration::from_millis(20));
        callback.reply(&b"\x12\x08\x08\x04\x12\x04over"[..]);
    }
}

#[tokio::test]
async fn rpc_env_33_timeout_reported_by_peer_names_local_setting() {
    let context = TransportContext::new(TransportConf::new("rpc"), RespondsLate);
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

//! A server sends malformed responses, or closes the connection instead of responding.

use std::time::{Duration, Instant};

use prost::Message;
use rpc_core::ErrorKind;

use crate::common::envelope::{Credit, Notice};
use crate::common::hi;
use crate::fixture::promptly;
use crate::raw_peer::{Failure, Response};
use crate::raw_server::{Victim, error_of, greeting, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_responses_that_are_garbage_fail_their_ask_only() {
    let mut victim = Victim::start().await;
    victim.assert_works().await;
    let garbage = [
        b"\xff".to_vec(),
        b"\x0a".to_vec(),
        b"\x0a\x7f\x00".to_vec(),
        b"\x12\x02\x08".to_vec(),
        b"\x0a\xff\xff\xff\xff\x0f".to_vec(),
        b"\x08\x01".to_vec(),
        value(b"\x0a\x7f"),
        value(b"\x0a\x01\xff"),
        "{}".into(),
        vec![0xff; 1 << 20],
    ];
    for response in garbage {
        let short = response[..response.len().min(20)].to_vec();
        let error = victim.ask_and_respond(response).await.0.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Decode, "{short:?}: {error:?}");
        assert!(text.contains("target") || text.contains("the reply"), "{short:?}: {text}");
        assert!(text.len() < 2000, "{short:?}: {} bytes of error", text.len());
    }
    assert!(victim.peer.is_active());
    victim.assert_works().await;
    victim.finish().await;
}

/// An empty response has no result, which proto3 cannot distinguish from a default value.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_responses_without_result_end_their_ask() {
    let mut victim = Victim::start().await;
    for response in [Vec::new(), b"\x1a\x00".to_vec(), value(b""), b"\x0a\x00\x0a\x00".to_vec()] {
        match victim.ask_and_respond(response.clone()).await.0 {
            Ok(reply) => assert_eq!(reply.text, "", "{response:?}"),
            Err(error) => assert!(error.to_string().contains("response"), "{response:?}: {error}"),
        }
    }
    victim.assert_works().await;
    victim.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_failures_of_any_kind_fail_their_ask_only() {
    let mut victim = Victim::start().await;
    for kind in [-1, 0, 1, 4, 7, 8, 1000, i32::MAX, i32::MIN] {
        let failure = Failure {
            kind,
            message: "odd\n".repeat(1000),
            causes: vec!["\u{0}".to_owned(); 1000],
            retryable: kind % 2 == 0,
        };
        let response = Response { value: None, failure: Some(failure) }.encode_to_vec();
        let error = victim.ask_and_respond(response).await.0.unwrap_err();
        assert!(error.is_remote(), "{kind}: {error:?}");
        if !(0..8).contains(&kind) {
            assert_eq!(error.kind(), ErrorKind::Application, "{kind}");
        }
    }
    // The ask may end with the value or the failure; in protobuf the last one of a oneof counts.
    let both = [greeting("first"), b"\x12\x02\x08\x07".to_vec()].concat();
    assert!(victim.ask_and_respond(both).await.0.is_err());
    victim.assert_works().await;
    victim.finish().await;
}

/// The server fails requests with RpcFailure frames, or never responds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_rpc_failures_and_dropped_requests_fail_their_ask_only() {
    let mut victim = Victim::start().await;
    for text in ["no envelope", "", "line\nline", &"x".repeat(1 << 20)] {
        let ask = victim.target.ask(hi("neo"));
        victim.next_ask().await.1.fail(text);
        let error = error_of(ask).await;
        assert!(error.to_string().len() < (1 << 20) + 1000);
        assert!(error.peer().is_some(), "{error:?}");
    }
    let ask = victim.target.ask(hi("neo"));
    drop(victim.next_ask().await);
    error_of(ask).await;
    victim.assert_works().await;
    victim.finish().await;
}

/// The connection closes after each invalid message; the next ask connects again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_close_after_misbehaviour_fails_pending_asks_only() {
    let mut victim = Victim::start().await;
    let mut route = victim.assert_works().await;
    let started = Instant::now();
    for n in 0..8 {
        let pending: Vec<_> = (0..5).map(|_| victim.target.ask(hi("pending"))).collect();
        let (_, callback, peer) = victim.next_ask().await;
        let one = |route| {
            Some(Credit { route, messages: u64::MAX, bytes: u64::MAX, keeps_open: n % 2 == 0 })
        };
        match n {
            0 => {}
            1 | 2 => {
                peer.send(Notice { credit: one(route), ..Notice::default() }.envelope()).unwrap()
            }
            3 => peer
                .send(Notice { route_closed: one(route), ..Notice::default() }.envelope())
                .unwrap(),
            4 => peer
                .send(Notice { close_route: one(route), ..Notice::default() }.envelope())
                .unwrap(),
            5 => peer.send(b"\xff".to_vec()).unwrap(),
            6 => drop(peer.send_rpc(b"\xff".to_vec())),
            _ => peer.send(Vec::new()).unwrap(),
        }
        peer.close();
        drop(callback);
        let mut failed = 0;
        for ask in pending {
            // Queued asks are sent over the next connection, where the test has not replied yet.
            let end = tokio::time::timeout(Duration::from_millis(300), ask).await;
            if let Ok(Err(error)) = end {
                assert!(
                    error.to_string().contains(&victim.at) || error.peer().is_some(),
                    "{error:?}"
                );
                failed += 1;
            }
        }
        assert!(failed >= 1, "{n}: the ask that was sent fails with its connection");
        // Asks that were sent over a new connection get their replies here.
        route = loop {
            let ask = victim.target.ask(hi("again"));
            let mut ask = std::pin::pin!(ask);
            let reached = loop {
                let (message, callback, _) = victim.next_ask().await;
                let reached = message.body.ends_with(b"again");
                callback.reply(greeting("again"));
                if reached {
                    break message.route;
                }
            };
            if promptly("the reply", ask.as_mut()).await.is_ok() {
                break reached;
            }
        };
        victim.assert_honest_works().await;
    }
    println!("{:?}", started.elapsed());
    victim.finish().await;
}

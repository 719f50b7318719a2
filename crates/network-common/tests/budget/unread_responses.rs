//! Responses and messages that peers do not read.

use std::time::Duration;

use network_common::protocol::Message;
use network_common::{ByteBudget, ErrorKind, TransportConf, TransportContext};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const MIB: usize = 1 << 20;

/// Own requests to a peer that does not read fail while the budget is exhausted.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_messages_to_unread_peer_are_rejected() {
    let (connected, mut clients) = tokio::sync::mpsc::unbounded_channel();
    let budget = ByteBudget::new(16 << 20);
    let handler = Handler::new().on_active(move |client| drop(connected.send(client.clone())));
    let context = context(conf(&[]), handler).with_byte_budget(&budget);
    let server = serve(&context).await;
    let _unread = TcpStream::connect(server.local_addr()).await.unwrap();
    let at_server = within(clients.recv()).await.unwrap();
    let error = loop {
        if let Err(error) = at_server.send(vec![1; MIB]) {
            break error;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(error.is_retryable());
    assert!(error.to_string().contains("spark.network.maxHeldBytes"), "{error}");
    assert!(budget.held() <= 18 << 20, "{}", budget.held());
    // It is closed, as its bytes exhaust the budget and it makes no progress.
    until(|| context.metrics().server().snapshot().closed_for_budget == 1).await;
    until(|| budget.held() == 0).await;
}

/// A peer that reads late gets all responses: its requests wait in its socket meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_late_reader_gets_all_responses() {
    let budget = ByteBudget::new(8 << 20);
    let handler = Handler::new().on_rpc(|_, _, callback| callback.reply(vec![1; MIB]));
    let context = context(conf(&[]), handler).with_byte_budget(&budget);
    let server = serve(&context).await;
    let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
    let request = Message::RpcRequest { request_id: 1, body: "x".into() }.encode().unwrap();
    peer.write_all(&request.repeat(64)).await.unwrap();
    until(|| budget.held() > 4 << 20).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(budget.held() <= 8 << 20, "{}", budget.held());
    let mut response = vec![0; MIB + 21];
    for _ in 0..64 {
        within(peer.read_exact(&mut response)).await.unwrap();
        assert_eq!(response[8], 4, "an RPC response");
    }
    assert_eq!(context.metrics().server().snapshot().closed_for_budget, 0);
    until(|| budget.held() == 0).await;
}

/// Two processes that send each other more than their budgets do not wait for each other.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_two_busy_peers_do_not_wait_for_each_other() {
    let echo = || Handler::new();
    let budgets = [ByteBudget::new(8 << 20), ByteBudget::new(8 << 20)];
    let contexts: Vec<_> =
        budgets.iter().map(|budget| context(conf(&[]), echo()).with_byte_budget(budget)).collect();
    let (one, other) = (serve(&contexts[0]).await, serve(&contexts[1]).await);
    let factories = [contexts[0].create_client_factory(), contexts[1].create_client_factory()];
    let to_other = within(factories[0].create_client(other.local_addr())).await.unwrap();
    let to_one = within(factories[1].create_client(one.local_addr())).await.unwrap();
    let calls = [to_other, to_one].map(|client| async move {
        let mut failed = 0;
        for _ in 0..20 {
            let rpcs = (0..16).map(|_| client.send_rpc(vec![1; 300 << 10]));
            for result in within(futures::future::join_all(rpcs)).await {
                match result {
                    Ok(reply) => assert_eq!(reply.len(), 300 << 10),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        failed += 1;
                    }
                }
            }
        }
        failed
    });
    let failed: u32 = within(futures::future::join_all(calls)).await.into_iter().sum();
    assert!(failed < 640, "some succeed");
    for budget in &budgets {
        until(|| budget.held() == 0).await;
    }
}

/// The setting is one for the process; a context can have a budget of its own.
#[test]
fn fault_m7_setting_changes_limit_of_process() {
    let setting = "spark.network.maxHeldBytes";
    let conf = TransportConf::new("rpc").with(setting, "96m").unwrap();
    assert_eq!(conf.max_held_bytes(), Some(96 << 20));
    assert!(TransportConf::new("rpc").with(setting, "0").is_err());
    let own = ByteBudget::new(5);
    let context = TransportContext::new(conf, Handler::new());
    assert_eq!(context.byte_budget().limit(), 96 << 20);
    assert_eq!(ByteBudget::process().limit(), 96 << 20);
    assert_eq!(context.with_byte_budget(&own).byte_budget().limit(), 5);
}

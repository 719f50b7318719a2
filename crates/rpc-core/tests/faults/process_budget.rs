//! Row `fault_m7`: messages count in the byte budget of the process. Over it large messages are
//! rejected, and neither their connections nor their credit are lost.

use std::time::Duration;

use network_common::ByteBudget;
use rpc_core::{ErrorKind, RpcEnv, RpcError};

use crate::common::{HelloMessage, client, hi};
use crate::fixture::{Gate, NAME, ask, look_up, promptly, stuck, watch_undelivered};

const MIB: usize = 1 << 20;

/// Starts a server with a budget of 16 MiB and an endpoint.
async fn server(budget: &ByteBudget, is_stuck: bool) -> (RpcEnv, Gate) {
    let env = RpcEnv::builder("server").byte_budget(budget).bind("127.0.0.1:0").start();
    let env = env.await.unwrap();
    let (endpoint, mut gate) = stuck::<HelloMessage>("reply");
    if !is_stuck {
        gate.open();
    }
    env.setup_endpoint(NAME, endpoint).unwrap();
    (env, gate)
}

fn assert_rejected(error: &RpcError) {
    assert_eq!(error.kind(), ErrorKind::Limit, "{error:#}");
    assert!(error.is_retryable() && error.is_remote(), "{error:#}");
    for part in ["spark.network.maxHeldBytes", "16777216"] {
        assert!(error.to_string().contains(part), "{part} is missing: {error:#}");
    }
}

async fn until(condition: impl Fn() -> bool) {
    let holds = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.expect("the condition holds");
}

/// Also the first message of a route, which names the endpoint behind its body.
#[tokio::test]
async fn fault_m7_large_asks_are_rejected_and_keep_their_connection() {
    let budget = ByteBudget::new(16 << 20);
    let (server, _gate) = server(&budget, false).await;
    let client = client().await;
    let endpoint = look_up(&client, &server).await;
    let others = budget.share();
    others.update(15 << 20);
    let large = "x".repeat(MIB);
    for _ in 0..40 {
        let error = promptly("the large ask fails", ask(&endpoint, &large)).await.unwrap_err();
        assert_rejected(&error);
        let both = tokio::join!(ask(&endpoint, &large), ask(&endpoint, "small"));
        assert_rejected(&both.0.unwrap_err());
        assert_eq!(both.1.unwrap(), "reply");
    }
    drop(others);
    let asks = (0..50).map(|_| ask(&endpoint, &large));
    for reply in futures::future::join_all(asks).await {
        assert_eq!(reply.unwrap(), "reply", "no credit was lost");
    }
    let transport = server.snapshot().server;
    assert_eq!((transport.connections_total, transport.refused_messages), (1, 80));
    until(|| budget.held() == 0).await;
}

#[tokio::test]
async fn fault_m7_large_one_way_messages_are_reported_as_undelivered() {
    let budget = ByteBudget::new(16 << 20);
    let (server, mut gate) = server(&budget, false).await;
    let client = client().await;
    let mut undelivered = watch_undelivered(&client);
    let endpoint = look_up(&client, &server).await;
    let others = budget.share();
    others.update(15 << 20);
    let large = "x".repeat(MIB);
    for round in 0..3 {
        endpoint.send(hi(&large)).unwrap();
        let (error, _) = promptly("the message is reported", undelivered.recv()).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Limit, "{error:#}");
        let text = format!("{error:#}");
        assert!(text.contains("spark.network.maxHeldBytes"), "{text}");
        endpoint.send(hi(&round.to_string())).unwrap();
        assert_eq!(gate.next().await, round.to_string());
    }
}

#[tokio::test]
async fn fault_m7_message_larger_than_budget_is_rejected_finally() {
    let budget = ByteBudget::new(16 << 20);
    let (server, _gate) = server(&budget, false).await;
    let client = client().await;
    let endpoint = look_up(&client, &server).await;
    let error = promptly("the ask fails", ask(&endpoint, &"x".repeat(15 * MIB))).await;
    let error = error.unwrap_err();
    assert_eq!((error.kind(), error.is_retryable()), (ErrorKind::Limit, false), "{error:#}");
    assert!(error.to_string().contains("spark.network.maxHeldBytes"), "{error:#}");
    assert_eq!(promptly("a small ask", ask(&endpoint, "small")).await.unwrap(), "reply");
}

/// Queued messages count until they are handled; beyond the budget they are rejected.
#[tokio::test]
async fn fault_m7_queued_messages_count_in_process_budget() {
    let budget = ByteBudget::new(512 << 10);
    let (server, mut gate) = server(&budget, true).await;
    let clients = futures::future::join_all((0..16).map(|_| client())).await;
    let (mut endpoints, mut asks) = (Vec::new(), Vec::new());
    for client in &clients {
        endpoints.push(look_up(client, &server).await);
    }
    for endpoint in &endpoints {
        let message = "x".repeat(50 << 10);
        asks.extend((0..20).map(|_| tokio::spawn(ask(endpoint, &message))));
    }
    until(|| budget.held() >= 400 << 10).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (held, queued) = (budget.held(), server.snapshot().inbox_bytes);
    assert!(held <= 600 << 10, "{held}");
    assert!(held.abs_diff(queued) <= 64 << 10, "{held} are counted, {queued} are queued");
    gate.open();
    let (mut handled, mut rejected) = (0, 0);
    for ask in asks {
        match ask.await.unwrap() {
            Ok(_) => handled += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Limit, "{error:#}");
                assert!(error.is_retryable(), "{error:#}");
                assert!(error.to_string().contains("spark.network.maxHeldBytes"), "{error:#}");
                rejected += 1;
            }
        }
    }
    assert!(handled > 8 && rejected > 0, "{handled} are handled, {rejected} rejected");
    until(|| budget.held() == 0).await;
}

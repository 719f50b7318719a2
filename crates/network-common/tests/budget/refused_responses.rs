//! A response that the budget of the client does not allow fails its request alone.

use network_common::protocol::Message;
use network_common::{ByteBudget, ErrorKind, TransportError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::support::*;

const MIB: usize = 1 << 20;

/// Returns a pair whose client may hold `limit` bytes.
async fn pair(limit: usize) -> (Pair, ByteBudget) {
    let handler = Handler::new()
        .on_rpc(|_, message, callback| {
            let length: usize = std::str::from_utf8(&message).unwrap().parse().unwrap();
            callback.reply(pattern(length, 1));
        })
        .on_chunk(|_, length| Ok(pattern(length as usize, 2).into()));
    let server = context(conf(&[]), handler).with_byte_budget(&ByteBudget::new(u64::MAX));
    let budget = ByteBudget::new(limit as u64);
    let clients = context(conf(&[]), Handler::new()).with_byte_budget(&budget);
    (pair_of(server, clients).await, budget)
}

fn assert_refused(error: &TransportError) {
    assert_eq!(error.kind(), ErrorKind::Limit, "{error}");
    assert!(!error.is_retryable(), "the request may have been executed: {error}");
    for part in ["spark.network.maxHeldBytes", "response of"] {
        assert!(error.to_string().contains(part), "{part} is missing: {error}");
    }
}

#[tokio::test]
async fn fault_m7_response_over_budget_fails_its_request_alone() {
    let (pair, budget) = pair(8 * MIB).await;
    let before = pair.client.send_rpc("10");
    let rpc = pair.client.send_rpc((9 * MIB).to_string());
    let chunk = pair.client.fetch_chunk(1, 9 * MIB as i32);
    let behind = pair.client.send_rpc((2 * MIB).to_string());
    assert_eq!(within(before).await.unwrap().len(), 10);
    assert_refused(&within(rpc).await.unwrap_err());
    assert_refused(&within(chunk).await.unwrap_err());
    assert!(within(behind).await.unwrap() == pattern(2 * MIB, 1));
    assert!(within(pair.client.fetch_chunk(1, 3 * MIB as i32)).await.is_ok());
    assert!(pair.client.is_active());
    assert_eq!(pair.client_context.metrics().client().snapshot().refused_messages, 2);
    until(|| budget.held() == 0).await;
}

/// The memory of a chunk over 64 MiB grows as the chunk arrives, and counts once.
#[tokio::test]
async fn fault_m7_chunk_over_64_mib_arrives_if_it_fits() {
    let (pair, budget) = pair(120 * MIB).await;
    let body = within(pair.client.fetch_chunk(1, 100 * MIB as i32)).await.unwrap();
    assert!(body == pattern(100 * MIB, 2));
    drop(body);
    assert_refused(&within(pair.client.fetch_chunk(1, 110 * MIB as i32)).await.unwrap_err());
    until(|| budget.held() == 0).await;
}

/// Idle memory that is much larger than a message does not count for it.
#[tokio::test]
async fn fault_m7_large_idle_buffer_does_not_refuse_a_message_that_fits() {
    let (pair, budget) = pair(64 * MIB).await;
    let chunk = within(pair.client.fetch_chunk(1, 48 * MIB as i32)).await.unwrap();
    drop(chunk);
    for _ in 0..3 {
        let reply = within(pair.client.send_rpc((20 * MIB).to_string())).await.unwrap();
        assert!(reply == pattern(20 * MIB, 1));
    }
    until(|| budget.held() == 0).await;
}

/// A server announces a chunk of 2 GiB, and sends only its start.
#[tokio::test]
async fn fault_m7_hostile_chunk_length_reserves_no_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let budget = ByteBudget::new(64 << 20);
    let clients = context(conf(&[]), Handler::new()).with_byte_budget(&budget);
    let client = within(clients.create_client_factory().create_client(address)).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let first = client.fetch_chunk(1, 0);
    let mut frame = Vec::new();
    Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 0, body: () }
        .encode_header((1 << 31) - 100, &mut frame);
    frame.resize(frame.len() + 100_000, 0);
    peer.write_all(&frame).await.unwrap();
    assert_refused(&within(first).await.unwrap_err());
    assert_eq!(budget.held(), 0);
    assert!(client.is_active(), "the rest of the chunk is skipped");
}

/// A second connection cannot receive what a peer has announced and does not send.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_incomplete_response_is_closed_when_others_need_its_bytes() {
    let (pair, budget) = pair(24 * MIB).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = within(pair.factory.create_client(address)).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let stalled = client.fetch_chunk(1, 0);
    let mut frame = Vec::new();
    Message::ChunkFetchSuccess { stream_id: 1, chunk_index: 0, body: () }
        .encode_header(12 << 20, &mut frame);
    frame.resize(frame.len() + 100_000, 0);
    peer.write_all(&frame).await.unwrap();
    until(|| budget.held() >= 12 << 20).await;
    let served = async {
        loop {
            match pair.client.fetch_chunk(1, 10 * MIB as i32).await {
                Ok(body) => return body,
                Err(error) => assert_refused(&error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    assert!(within(served).await == pattern(10 * MIB, 2));
    let error = within(stalled).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("spark.network.maxHeldBytes"), "{error}");
    until(|| budget.held() == 0).await;
}

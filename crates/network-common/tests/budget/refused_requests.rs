//! Requests that the budget does not allow are refused, and their connections live.

use bytes::Bytes;
use network_common::protocol::Message;
use network_common::{ByteBudget, ErrorKind, ManagedBuffer, TransportError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

const MIB: usize = 1 << 20;

/// Returns a pair whose server has a budget of 24 MiB, and a peer that holds about 10 MiB of it.
async fn exhausted() -> (Pair, ByteBudget, TcpStream) {
    let budget = ByteBudget::new(24 << 20);
    let handler = Handler::new()
        .on_rpc(|_, message, callback| callback.reply(message.len().to_string()))
        .on_upload(|meta, data| async move {
            Ok(format!("{} {}", meta.len(), data.collect().await?.len()).into())
        });
    let server = context(conf(&[]), handler).with_byte_budget(&budget);
    let queue = ("spark.shuffle.io.maxWriteQueueSize", "1g");
    let clients =
        context(conf(&[queue]), Handler::new()).with_byte_budget(&ByteBudget::new(u64::MAX));
    let pair = pair_of(server, clients).await;
    let mut half = TcpStream::connect(pair.server.local_addr()).await.unwrap();
    let request = Message::RpcRequest { request_id: 1, body: vec![1; 12 * MIB].into() };
    half.write_all(&request.encode().unwrap()[..11 * MIB]).await.unwrap();
    until(|| budget.held() > 16 << 20).await;
    (pair, budget, half)
}

fn assert_refused(error: &TransportError) {
    assert_eq!(error.kind(), ErrorKind::Remote, "{error}");
    assert!(error.is_retryable(), "{error}");
    for part in ["Refused for now", "spark.network.maxHeldBytes", "25165824"] {
        assert!(error.to_string().contains(part), "{part} is missing: {error}");
    }
}

#[tokio::test]
async fn fault_m7_large_request_is_refused_by_its_id() {
    let (pair, budget, half) = exhausted().await;
    let before = pair.client.send_rpc("before");
    let refused = [10 * MIB, 8 * MIB].map(|size| pair.client.send_rpc(vec![1; size]));
    let behind = pair.client.send_rpc(vec![1; 60 << 10]);
    assert_eq!(within(before).await.unwrap(), "6");
    for refused in refused {
        assert_refused(&within(refused).await.unwrap_err());
    }
    assert_eq!(within(behind).await.unwrap(), (60 << 10).to_string());
    let metrics = pair.context.metrics().server().snapshot();
    assert_eq!((metrics.refused_messages, metrics.active_requests), (2, 0), "{metrics:?}");
    assert!(pair.client.is_active());
    drop(half);
    until(|| budget.held() == 0).await;
    let repeated = pair.client.send_rpc(vec![1; 10 * MIB]);
    assert_eq!(within(repeated).await.unwrap(), (10 * MIB).to_string());
    until(|| budget.held() == 0).await;
}

#[tokio::test]
async fn fault_m7_large_one_way_message_is_discarded() {
    let (pair, _budget, _half) = exhausted().await;
    pair.client.send(vec![1; 10 * MIB]).unwrap();
    assert_eq!(within(pair.client.send_rpc("x")).await.unwrap(), "1");
    assert_eq!(pair.context.metrics().server().snapshot().refused_messages, 1);
}

/// The meta of an upload is a part of the request; its data is received piece by piece.
#[tokio::test]
async fn fault_m7_upload_with_large_meta_is_refused() {
    let (pair, _budget, _half) = exhausted().await;
    for data in [0, 1, 3 * MIB] {
        let data: ManagedBuffer = pattern(data, 1).into();
        let upload = pair.client.upload_stream(pattern(9 * MIB, 2), data);
        assert_refused(&within(upload).await.unwrap_err());
        let small = within(pair.client.upload_stream("meta", pattern(3 * MIB, 3))).await;
        assert_eq!(small.unwrap(), format!("4 {}", 3 * MIB));
    }
}

/// A repetition could not succeed.
#[tokio::test]
async fn fault_m7_request_larger_than_budget_is_refused_finally() {
    let (pair, budget, half) = exhausted().await;
    drop(half);
    until(|| budget.held() == 0).await;
    let error = within(pair.client.send_rpc(vec![1; 23 * MIB])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(!error.is_retryable(), "{error}");
    assert!(error.to_string().contains("spark.network.maxHeldBytes"), "{error}");
    let fits = pair.client.send_rpc(vec![1; 14 * MIB]);
    assert_eq!(within(fits).await.unwrap(), (14 * MIB).to_string());
}

/// A peer that leaves its requests incomplete is closed when another one needs the bytes.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_incomplete_request_is_closed_when_others_need_its_bytes() {
    let (pair, _budget, _half) = exhausted().await;
    let served = async {
        loop {
            match pair.client.send_rpc(vec![1; 10 * MIB]).await {
                Ok(reply) => return reply,
                Err(error) => assert_refused(&error),
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    assert_eq!(within(served).await, (10 * MIB).to_string());
    assert_eq!(pair.context.metrics().server().snapshot().closed_for_budget, 1);
}

/// The count returns to 0 on every path.
#[tokio::test(flavor = "multi_thread")]
async fn fault_m7_count_returns_to_0_when_connections_end() {
    let budget = ByteBudget::new(256 << 20);
    let handler = Handler::new()
        .on_rpc(|client, message, callback| match &message[..] {
            b"panic" => panic!("for the test"),
            b"close" => client.close(),
            b"large" => callback.reply(vec![1; 8 * MIB]),
            _ => callback.reply("small"),
        })
        .on_upload(|_, data| async move {
            drop(data);
            Err("for the test".into())
        })
        .on_stream(|name| match name {
            "panic" => panic!("for the test"),
            "error" => Err("x".repeat(900_000).into()),
            _ => Ok(Some(vec![1; 8 * MIB].into())),
        });
    let context = context(conf(&[]), handler).with_byte_budget(&budget);
    let server = serve(&context).await;
    let rpc = |body: &'static str| Message::RpcRequest { request_id: 1, body: body.into() };
    let stream = |name: &str| Message::StreamRequest { stream_id: name.to_owned() };
    let half = Message::RpcRequest { request_id: 2, body: Bytes::from(vec![1; 9 * MIB]) };
    let half = half.encode().unwrap()[..8 * MIB].to_vec();
    let upload: Message = Message::UploadStream {
        request_id: 3,
        meta: Bytes::from(vec![1; 3 * MIB]),
        byte_count: 1 << 30,
    };
    let mut upload = upload.encode().unwrap();
    upload.resize(5 * MIB, 1);
    let paths: Vec<Vec<u8>> = vec![
        rpc("large").encode().unwrap(),
        rpc("panic").encode().unwrap(),
        [rpc("large").encode().unwrap(), rpc("close").encode().unwrap()].concat(),
        stream("large").encode().unwrap(),
        stream("panic").encode().unwrap(),
        stream("error").encode().unwrap(),
        half.clone(),
        half[..MIB].to_vec(),
        upload.clone(),
        upload[..2 * MIB].to_vec(),
        [rpc("large").encode().unwrap(), b"not a frame, but large enough for one".to_vec()]
            .concat(),
    ];
    for round in 0..3 {
        for path in &paths {
            let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
            let _ = peer.write_all(path).await;
            if round > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            drop(peer);
        }
    }
    until(|| context.metrics().server().snapshot().connections == 0).await;
    until(|| budget.held() == 0).await;
    assert_eq!(context.metrics().server().snapshot().held_bytes, 0);
}

//! RPCs and bodies on the same connection or thread: how long RPCs are delayed.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use network_common::protocol::{Event, FrameDecoder, Message};
use network_common::{ManagedBuffer, TransportContext};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// More than the socket buffers of a peer that does not read can hold.
const BODY: usize = 64 << 20;
const BODIES: i32 = 3;

/// Returns the responses in order: the index of each chunk, and `None` for the RPC.
async fn order_of_answers(client: &mut TcpStream) -> Vec<Option<i32>> {
    let (mut decoder, mut read, mut order) =
        (FrameDecoder::default(), vec![0; 1 << 20], Vec::new());
    while order.len() <= BODIES as usize {
        let count = within(client.read(&mut read)).await.unwrap();
        assert_ne!(count, 0, "closed after {order:?}");
        let mut input = &read[..count];
        while let Some(event) = decoder.next_event(&mut input).unwrap() {
            match event {
                Event::BodyStart {
                    message: Message::ChunkFetchSuccess { chunk_index, .. },
                    length,
                } => {
                    assert_eq!(length, BODY as u64);
                    order.push(Some(chunk_index));
                    decoder.discard_body();
                }
                Event::Message(Message::RpcResponse { .. }) => order.push(None),
                other => panic!("{other:?}"),
            }
        }
    }
    order
}

/// An RPC that arrives while a body is sent is answered before the next body, for bodies in memory
/// and in files.
#[tokio::test]
async fn rpc_response_waits_for_at_most_one_body() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(BODY as u64).unwrap();
    let in_file = ManagedBuffer::file(file.path(), 0..BODY as u64);
    let in_memory = ManagedBuffer::from(vec![7; BODY]);
    // With a smaller write queue the server would not read the RPC.
    let settings =
        |mode| [("spark.shuffle.io.mode", mode), ("spark.shuffle.io.maxWriteQueueSize", "1g")];
    for (body, mode) in [(in_file.clone(), "AUTO"), (in_file, "NIO"), (in_memory, "AUTO")] {
        let received = Arc::new(Notify::new());
        let notify = Arc::clone(&received);
        let handler = Handler::new().on_chunk(move |_, _| Ok(body.clone())).on_rpc(
            move |_, body, callback| {
                callback.reply(body);
                notify.notify_one();
            },
        );
        let context = TransportContext::new(conf(&settings(mode)), handler);
        let server = serve(&context).await;
        let mut client = TcpStream::connect(server.local_addr()).await.unwrap();
        let mut requests = Vec::new();
        for chunk_index in 0..BODIES {
            Message::<()>::ChunkFetchRequest { stream_id: 1, chunk_index }
                .encode_header(0, &mut requests);
        }
        client.write_all(&requests).await.unwrap();
        until(|| context.metrics().server().snapshot().sent_bytes > 0).await;
        requests.clear();
        Message::RpcRequest { request_id: 7, body: () }.encode_header(0, &mut requests);
        client.write_all(&requests).await.unwrap();
        within(received.notified()).await;
        assert_eq!(
            order_of_answers(&mut client).await,
            [Some(0), None, Some(1), Some(2)],
            "{mode}"
        );
    }
}

/// Connections on one thread take turns: an RPC waits for few bodies of another connection.
#[tokio::test]
async fn bodies_do_not_block_other_connections_of_their_thread() {
    const FETCHES: usize = 4;
    let body = Bytes::from(vec![7; 16 << 20]);
    let handler = Handler::new().on_chunk(move |_, _| Ok(body.clone().into()));
    let pair = pair(handler).await;
    let other =
        within(pair.factory.create_unmanaged_client(pair.server.local_addr())).await.unwrap();
    let fetched = Arc::new(AtomicUsize::new(0));
    let fetching = (0..FETCHES).map(|fetch| {
        let (client, fetched) = (pair.client.clone(), Arc::clone(&fetched));
        tokio::spawn(async move {
            for chunk in (fetch..).step_by(FETCHES) {
                client.fetch_chunk(1, chunk as i32).await.unwrap();
                fetched.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let fetching: Vec<_> = fetching.collect();
    until(|| fetched.load(Ordering::Relaxed) > FETCHES).await;
    for _ in 0..20 {
        let before = fetched.load(Ordering::Relaxed);
        within(other.send_rpc("hello")).await.unwrap();
        let passed = fetched.load(Ordering::Relaxed) - before;
        assert!(passed <= FETCHES, "{passed} bodies were sent before the response");
    }
    fetching.iter().for_each(tokio::task::JoinHandle::abort);
}

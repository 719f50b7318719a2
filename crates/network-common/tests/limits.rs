//! Limits of the write queue and their errors, and errors of binding; with raw peers that do not
//! read.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use network_common::{ErrorKind, ManagedBuffer, TransportClient, TransportContext};
use support::*;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

const LIMIT: usize = 256 << 10;

/// Returns a client whose peer accepts the connection and reads nothing.
async fn unread() -> (TransportClient, TcpStream, TransportContext) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = [
        ("spark.shuffle.io.maxWriteQueueSize", "256k"),
        // A small buffer, so that the kernel takes little.
        ("spark.shuffle.io.sendBuffer", "64k"),
    ];
    let context = TransportContext::new(conf(&settings), Handler::new());
    let factory = context.create_client_factory();
    let client =
        within(factory.create_unmanaged_client(listener.local_addr().unwrap())).await.unwrap();
    let (peer, _) = within(listener.accept()).await.unwrap();
    (client, peer, context)
}

/// Sends until messages are rejected permanently, when also the socket buffers are full.
async fn fill(client: &TransportClient) -> network_common::TransportError {
    let piece = Bytes::from(vec![0; 32 << 10]);
    let mut rejections = 0;
    loop {
        match client.send(piece.clone()) {
            Ok(()) => rejections = 0,
            Err(error) if rejections == 20 => return error,
            Err(_) => {
                rejections += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

#[tokio::test]
async fn full_write_queue_rejects_requests_until_it_has_capacity() {
    let (client, mut peer, context) = unread().await;
    within(client.ready()).await.unwrap();
    let error = within(fill(&client)).await;
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.is_retryable());
    assert!(error.to_string().contains("spark.shuffle.io.maxWriteQueueSize"), "{error}");
    assert_eq!(error.peer(), Some(client.peer_addr().to_string().as_str()));
    until(|| context.metrics().client().snapshot().write_queue_bytes > LIMIT as u64 / 2).await;
    let queued = context.metrics().client().snapshot().write_queue_bytes;
    assert!(queued <= LIMIT as u64 + (64 << 10), "{queued} bytes are queued");
    // Every type of request is rejected, and none stays pending.
    while client.send("x").is_ok() {}
    let large = Bytes::from(vec![0; LIMIT]);
    let pending = client.pending_requests();
    assert_eq!(within(client.send_rpc(large.clone())).await.unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(within(client.upload_stream("", large)).await.unwrap_err().kind(), ErrorKind::Limit);
    assert_eq!(client.pending_requests(), pending);
    assert!(client.is_active(), "a rejection must not close the connection");

    let waiting = client.clone();
    let ready = tokio::spawn(async move { waiting.ready().await });
    assert!(client.ready().now_or_never().is_none());
    let reading = tokio::spawn(async move {
        let mut block = vec![0; 64 << 10];
        while peer.read(&mut block).await.is_ok_and(|count| count > 0) {}
    });
    within(ready).await.unwrap().unwrap();
    client.send("after ready").unwrap();
    until(|| context.metrics().client().snapshot().write_queue_bytes == 0).await;
    drop(client);
    within(reading).await.unwrap();
}

/// After `ready` a request of any size is accepted; otherwise a caller that waits for capacity
/// would spin.
#[tokio::test]
async fn request_of_any_size_is_accepted_after_ready() {
    let (client, mut peer, _context) = unread().await;
    within(fill(&client)).await;
    while client.send("x").is_ok() {}
    let reading = tokio::spawn(async move {
        let mut block = vec![0; 4 << 10];
        while peer.read(&mut block).await.is_ok_and(|count| count > 0) {
            tokio::task::yield_now().await;
        }
    });
    for size in [1, LIMIT / 2, LIMIT, 2 * LIMIT, 2 * LIMIT] {
        within(client.ready()).await.unwrap();
        client.send(vec![0; size]).unwrap();
    }
    drop(client);
    within(reading).await.unwrap();
}

/// The content of files is not in memory and does not count.
#[tokio::test]
async fn files_do_not_count_in_write_queue() {
    let file = file_of(&vec![7; 4 * LIMIT]);
    let (client, _peer, context) = unread().await;
    let body = || ManagedBuffer::file(file.path(), 0..4 * LIMIT as u64);
    // Fills the socket buffers until a little stays in the queue.
    let queued = || context.metrics().client().snapshot().write_queue_bytes;
    loop {
        client.send(vec![0; 16 << 10]).unwrap();
        let written = async {
            while queued() > 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::task::yield_now().await;
        if tokio::time::timeout(Duration::from_millis(200), written).await.is_err() {
            break;
        }
    }
    assert!(queued() < LIMIT as u64);
    let mut uploads: Vec<_> = (0..8).map(|_| client.upload_stream("meta", body())).collect();
    for upload in &mut uploads {
        let early = tokio::time::timeout(Duration::from_millis(20), upload).await;
        assert!(early.is_err(), "{early:?}");
    }
    assert_eq!(client.pending_requests(), 8);
}

#[tokio::test]
async fn ready_fails_when_connection_ends() {
    let (client, peer, _context) = unread().await;
    within(fill(&client)).await;
    while client.send("x").is_ok() {}
    let waiting = client.clone();
    let ready = tokio::spawn(async move { waiting.ready().await });
    tokio::task::yield_now().await;
    drop(peer);
    let error = within(ready).await.unwrap().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::Io), "{error}");
    assert_eq!(within(client.ready()).await.unwrap_err().kind(), error.kind());
}

/// The server stops reading from a peer that does not read, so that its responses do not
/// accumulate.
#[tokio::test(flavor = "multi_thread")]
async fn server_stops_reading_from_peer_that_does_not_read() {
    use network_common::protocol::Message;
    use tokio::io::AsyncWriteExt;
    let handler =
        Handler::new().on_rpc(|_, _, callback| callback.reply(Bytes::from_static(&[1; 16 << 10])));
    let settings = [("spark.shuffle.io.maxWriteQueueSize", "256k")];
    let context = TransportContext::new(conf(&settings), handler);
    let server = serve(&context).await;
    let mut peer = TcpStream::connect(server.local_addr()).await.unwrap();
    let request =
        Message::RpcRequest { request_id: 1, body: Bytes::from(vec![0; 1000]) }.encode().unwrap();
    // 50 MB of requests, 800 MB of responses.
    let mut written = 0;
    let stalled = async {
        for _ in 0..50_000 {
            peer.write_all(&request).await.unwrap();
            written += request.len();
        }
    };
    let stalled = tokio::time::timeout(Duration::from_secs(2), stalled).await;
    assert!(stalled.is_err(), "the server read all requests");
    let now = context.metrics().server().snapshot();
    // The limit, and the requests of one read.
    assert!(
        now.write_queue_bytes < 16 << 20,
        "{} bytes of responses are queued",
        now.write_queue_bytes
    );
    assert_eq!(now.connections, 1);
    // The server continues once the peer reads.
    let mut block = vec![0; 64 << 10];
    let before = now.received_bytes;
    until_read(&mut peer, &mut block, || {
        context.metrics().server().snapshot().received_bytes > before + (1 << 20)
    })
    .await;
}

async fn until_read(peer: &mut TcpStream, block: &mut [u8], done: impl Fn() -> bool) {
    within(async {
        // Responses end when the last complete request is answered, so a pause ends the loop too.
        while !done() {
            match tokio::time::timeout(Duration::from_millis(500), peer.read(block)).await {
                Ok(Ok(count)) => assert!(count > 0, "the server closed"),
                Ok(Err(error)) => panic!("{error}"),
                Err(_) => return,
            }
        }
    })
    .await;
}

#[tokio::test]
async fn bind_returns_real_port_and_its_errors_name_the_address() {
    let context = TransportContext::new(conf(&[]), Handler::new());
    let server = serve(&context).await;
    let address = server.local_addr();
    assert_ne!(address.port(), 0);
    TcpStream::connect(address).await.unwrap();
    let error = context.create_server(address).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bind);
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert!(std::error::Error::source(&error).is_some() && !error.is_retryable());
    let error = context.create_server("no.such.host.invalid:0").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Bind);
    // The port is free right after the close, also with connections in TIME_WAIT.
    assert_eq!(within(server.close(Duration::from_secs(10))).await, 0);
    drop(context.create_server(address).await.unwrap());
}

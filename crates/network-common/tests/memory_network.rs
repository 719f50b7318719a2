//! RPCs and bodies over `MemoryNetwork`, without sockets.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::ErrorKind as IoErrorKind;
use std::time::{Duration, Instant};

use network_common::{
    ErrorKind, ManagedBuffer, MemoryNetwork, NoOpRpcHandler, RetryPolicy, TransportContext,
    TransportError,
};
use support::{Handler, conf, file_of, pair_of, pattern, within};

fn on(network: &MemoryNetwork, handler: Handler, settings: &[(&str, &str)]) -> TransportContext {
    TransportContext::new(conf(settings), handler).memory_network(network)
}

#[tokio::test]
async fn all_messages_pass_through_memory_network() {
    let network = MemoryNetwork::new();
    let content = pattern(3 << 20, 1);
    let file = file_of(&content);
    let path = file.path().to_owned();
    let (chunk_path, stream_path) = (path.clone(), path);
    let length = content.len() as u64;
    let handler = Handler::new()
        .on_rpc(|_, message, callback| callback.reply(message))
        .on_chunk(move |_, _| Ok(ManagedBuffer::file(&chunk_path, 0..length)))
        .on_stream(move |_| Ok(Some(ManagedBuffer::file(&stream_path, 0..length))))
        .on_upload(|_, data| async move { Ok(data.collect().await?) });
    let pair = pair_of(on(&network, handler, &[]), on(&network, Handler::new(), &[])).await;
    assert_eq!(within(pair.client.send_rpc("hello")).await.unwrap(), "hello");
    assert_eq!(within(pair.client.fetch_chunk(1, 0)).await.unwrap(), content);
    let stream = within(pair.client.stream("file")).await.unwrap();
    assert_eq!(within(stream.collect()).await.unwrap(), content);
    assert_eq!(within(pair.client.upload_stream("meta", content.clone())).await.unwrap(), content);
    let server = pair.context.metrics().server().snapshot();
    assert_eq!((server.sendfile_bytes, server.copied_file_bytes), (0, 2 * length));
    assert_eq!(pair.client.peer_addr(), pair.server.local_addr());
    pair.assert_no_failures();

    assert_eq!(pair.server.close(Duration::from_secs(5)).await, 0);
    within(pair.client.closed()).await;
}

#[tokio::test]
async fn addresses_are_bound_once_and_unbound_on_close() {
    let network = MemoryNetwork::new();
    let context = on(&network, Handler::new(), &[]);
    let server = context.create_server("10.0.0.1:7337").await.unwrap();
    let taken = context.create_server("10.0.0.1:7337").await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::Bind);
    let factory = context.create_client_factory();
    within(factory.create_client(("10.0.0.1", 7337))).await.unwrap();
    for nowhere in [("10.0.0.2", 7337), ("10.0.0.1", 1), ("example.com", 7337)] {
        assert_eq!(
            within(factory.create_client(nowhere)).await.unwrap_err().kind(),
            ErrorKind::Connect
        );
    }
    // Another network has no listener at this address.
    let elsewhere = on(&MemoryNetwork::new(), Handler::new(), &[]).create_client_factory();
    let error = within(elsewhere.create_client(("10.0.0.1", 7337))).await.unwrap_err();
    let cause =
        std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    assert_eq!(cause.map(std::io::Error::kind), Some(IoErrorKind::ConnectionRefused));
    server.close(Duration::ZERO).await;
    drop(context.create_server("10.0.0.1:7337").await.unwrap());
}

/// The request timeout of 2 min passes at once, because no I/O is pending in the system.
#[tokio::test(start_paused = true)]
async fn request_times_out_with_paused_clock() {
    let begun = Instant::now();
    let network = MemoryNetwork::new();
    let (keep, _kept) = std::sync::mpsc::channel();
    let silent = Handler::new().on_rpc(move |_, _, callback| drop(keep.send(callback)));
    let client = TransportContext::new(conf(&[]), NoOpRpcHandler::new()).memory_network(&network);
    let pair = pair_of(on(&network, silent, &[]), client).await;
    let error = pair.client.send_rpc("no response").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn retry_06_connecting_is_repeated_until_server_listens() {
    let network = MemoryNetwork::new();
    let context = on(&network, Handler::new(), &[]);
    let factory = context.create_client_factory();
    let policy = RetryPolicy::new().attempts(10).first_wait(Duration::from_secs(1)).jitter(false);
    let mut attempts = 0;
    let connecting = policy.run(
        |attempt| {
            attempts = attempt.number;
            // Fails at once within 4.75 s of a failure, and that is retryable, too.
            factory.create_client_fast_fail("10.0.0.1:7337")
        },
        TransportError::is_retryable,
    );
    let listening = async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        context.create_server("10.0.0.1:7337").await
    };
    let (client, server) = tokio::join!(connecting, listening);
    assert_eq!(client.unwrap().peer_addr(), server.unwrap().local_addr());
    // At 0, 1 and 3 s, then at 7 s.
    assert_eq!(attempts, 4);

    let mut attempts = 0;
    let connecting = policy.run(
        |attempt| {
            attempts = attempt.number;
            factory.create_client("no address")
        },
        TransportError::is_retryable,
    );
    assert_eq!(connecting.await.unwrap_err().kind(), ErrorKind::InvalidAddress);
    assert_eq!(attempts, 1);
}

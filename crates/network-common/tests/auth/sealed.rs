//! Sealed bodies: the sizes of sealed messages as a proxy and the metrics see them.

use network_common::ManagedBuffer;

use crate::fixture::*;
use crate::hostile::handshake_lengths;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// Fetches an empty region of a file, then one of four bytes.
#[tokio::test]
async fn ae_13_empty_file_region_is_transferred_encrypted() {
    for mode in MODES {
        let file = file_of(b"four");
        let path = file.path().to_owned();
        let chunk = move |_, index| Ok(ManagedBuffer::file(&path, 0..4 * index as u64));
        let server = Server::with(mode.settings, Handler::new().on_chunk(chunk)).await;
        let client = Client::new(mode.settings).connect(server.server.local_addr()).await.unwrap();
        for (index, content) in [(0, ""), (1, "four"), (0, "")] {
            assert_eq!(
                within(client.fetch_chunk(1, index)).await.unwrap(),
                content,
                "{}",
                mode.name
            );
        }
    }
}

/// A file region is read on another thread and must be sealed as a few large messages.
#[tokio::test(flavor = "multi_thread")]
async fn gcm_02_file_region_is_sealed_in_large_messages() {
    for mode in [GCM_1, GCM_2] {
        const SIZE: u64 = (3 << 20) + 17;
        let content = pattern(SIZE as usize, 3);
        let file = file_of(&content);
        let path = file.path().to_owned();
        let chunk = move |_, _| Ok(ManagedBuffer::file(&path, 0..SIZE));
        let (_, handshake) = handshake_lengths(&mode).await;
        let server = Server::with(mode.settings, Handler::new().on_chunk(chunk)).await;
        let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
        let end = Client::new(mode.settings);
        let client = end.connect(proxy.address).await.unwrap();
        assert!(within(client.fetch_chunk(1, 0)).await.unwrap() == content, "{}", mode.name);

        let seen = proxy.seen(Direction::ToClient);
        let (mut rest, mut messages) = (&seen[handshake..], 0);
        while let Some(length) = rest.first_chunk::<8>() {
            rest = &rest[u64::from_be_bytes(*length) as usize..];
            messages += 1;
        }
        assert!(
            rest.is_empty() && messages <= SIZE / (200 << 10),
            "{}: {messages} messages",
            mode.name
        );
        assert_eq!(server.context.metrics().server().snapshot().copied_file_bytes, SIZE);
    }
}

/// Sealed bytes are written in small parts and arrive in smaller ones.
#[tokio::test(flavor = "multi_thread")]
async fn sasl_05_sealed_message_arrives_through_narrow_proxy() {
    for mode in MODES {
        let settings: Settings =
            [mode.settings, &[("spark.shuffle.io.sendBuffer", "4k")]].concat().leak();
        let server = Server::new(settings).await;
        let proxy =
            Proxy::before(server.server.local_addr(), Fault::Narrow(Direction::ToServer, 32)).await;
        let client = Client::new(settings).connect(proxy.address).await.unwrap();
        for length in [1024, 100_000] {
            let message = pattern(length, 1);
            assert!(
                within(client.send_rpc(message.clone())).await.unwrap() == message,
                "{}",
                mode.name
            );
        }
    }
}

#[cfg(feature = "legacy-auth")]
#[tokio::test]
async fn sasl_07_file_region_is_encrypted() {
    let content = pattern(8 << 10, 2);
    let file = file_of(&content);
    let path = file.path().to_owned();
    let chunk = move |_, _| Ok(ManagedBuffer::file(&path, 0..8 << 10));
    let server = Server::with(SASL_ENCRYPTED.settings, Handler::new().on_chunk(chunk)).await;
    let client =
        Client::new(SASL_ENCRYPTED.settings).connect(server.server.local_addr()).await.unwrap();
    assert_eq!(within(client.fetch_chunk(1, 0)).await.unwrap(), content);
    assert_eq!(server.context.metrics().server().snapshot().sendfile_bytes, 0);
}

//! A hostile proxy between client and server that changes, cuts or replaces bytes.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use network_common::ErrorKind;
use network_common::protocol::Message;

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

/// Returns the handshake's length in bytes for each direction.
pub async fn handshake_lengths(mode: &Mode) -> (usize, usize) {
    let server = Server::new(mode.settings).await;
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let _client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
    (proxy.seen(Direction::ToServer).len(), proxy.seen(Direction::ToClient).len())
}

fn short_timeout(mode: &Mode) -> Settings {
    let mut settings = mode.settings.to_vec();
    settings.push(("spark.network.auth.rpcTimeout", "500ms"));
    settings.leak()
}

/// Runs one handshake with a fault. Returns whether it and the RPC after it succeeded.
async fn connects_despite(server: &Server, settings: Settings, fault: Fault) -> bool {
    let proxy = Proxy::before(server.server.local_addr(), fault).await;
    let end = Client::new(settings);
    match end.connect(proxy.address).await {
        Ok(client) => within(client.send_rpc("hello")).await.is_ok(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Bootstrap, "{error}");
            false
        }
    }
}

/// Flips a bit in every byte of every handshake message, and cuts the stream at every third.
#[tokio::test(flavor = "multi_thread")]
async fn ai_03_damaged_handshake_fails_and_serves_nothing() {
    for mode in MODES {
        let (to_server, to_client) = handshake_lengths(mode).await;
        let settings = short_timeout(mode);
        let server = Server::new(settings).await;
        let mut faults = Vec::new();
        for (direction, length) in
            [(Direction::ToServer, to_server), (Direction::ToClient, to_client)]
        {
            for at in 0..length {
                faults.push(Fault::Flip(direction, at, (at % 7) as u8));
                if at % 3 == 0 {
                    faults.push(Fault::Cut(direction, at));
                }
            }
        }
        let (server, total) = (&server, faults.len());
        let survived: Vec<Fault> = futures::stream::iter(faults)
            .map(|fault| async move {
                connects_despite(server, settings, fault.clone()).await.then_some(fault)
            })
            .buffer_unordered(64)
            .filter_map(|survived| async move { survived })
            .collect()
            .await;
        server.wait_until_empty().await;
        // The old engine does not protect the IVs that its server sends. With a wrong IV the server
        // still serves the request, but the client cannot decrypt the response. The offset of the
        // IVs varies with the length of the number in front of them.
        let unread = if mode.name == "engine before 3.2" { 14..=18 } else { 0..=0 };
        let served = server.served();
        assert!(
            unread.contains(&(served - survived.len())),
            "{}: {served} served, {survived:?} survived",
            mode.name
        );
        // The receiver ignores the body length field of an RPC: 4 bytes in each of the two frames.
        let harmless = if mode.name.starts_with("sasl") {
            // DIGEST-MD5 does not hash the token's charset and maxbuf, spaces, or offers of other
            // ciphers.
            assert!(!survived.iter().any(|fault| matches!(fault, Fault::Cut(..))), "{survived:?}");
            total / 8
        } else {
            8
        };
        assert!(
            survived.len() <= harmless,
            "{}: {} of {total}: {survived:?}",
            mode.name,
            survived.len()
        );
    }
}

/// Flips a bit in, or cuts before, every byte of the first sealed message after the handshake. The
/// message must not be accepted and the connection must end; if only the length grew, it ends at
/// the request timeout.
async fn check_damaged_sealed_bytes(mode: &Mode) {
    let (to_server, to_client) = handshake_lengths(mode).await;
    let short_timeout: Settings =
        [mode.settings, &[("spark.shuffle.io.connectionTimeout", "5s")]].concat().leak();
    for (direction, start) in [(Direction::ToServer, to_server), (Direction::ToClient, to_client)] {
        let server = Server::new(mode.settings).await;
        let address = server.server.local_addr();
        let run_with_fault = |fault: Fault| async move {
            let proxy = Proxy::before(address, fault.clone()).await;
            let end = Client::new(short_timeout);
            let client = end.connect(proxy.address).await.unwrap();
            let failed = within(client.send_rpc("hello, world")).await;
            let kind = failed.map_err(|error| error.kind());
            assert!(
                matches!(kind, Err(ErrorKind::Closed | ErrorKind::Io | ErrorKind::Timeout)),
                "{} {fault:?}: {kind:?}",
                mode.name
            );
        };
        let faults = (0..first_sealed_length(mode, direction, start).await).flat_map(|offset| {
            let flip = Fault::Flip(direction, start + offset, (offset % 8) as u8);
            [flip, Fault::Cut(direction, start + offset)]
        });
        let faults: Vec<_> = faults.collect();
        assert!(faults.len() > 100);
        futures::stream::iter(faults.clone()).for_each_concurrent(32, run_with_fault).await;
        server.wait_until_empty().await;
        let served = if direction == Direction::ToServer { 0 } else { faults.len() };
        assert_eq!(server.served(), served, "{} {direction:?}", mode.name);
    }
}

/// Returns the length of the first sealed message after an undisturbed handshake.
async fn first_sealed_length(mode: &Mode, direction: Direction, start: usize) -> usize {
    let server = Server::new(mode.settings).await;
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let end = Client::new(mode.settings);
    let client = end.connect(proxy.address).await.unwrap();
    within(client.send_rpc("hello, world")).await.unwrap();
    let seen = proxy.seen(direction);
    u64::from_be_bytes(*seen[start..].first_chunk().unwrap()) as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn gcm_13_damaged_sealed_bytes_end_connection() {
    check_damaged_sealed_bytes(&GCM_1).await;
    check_damaged_sealed_bytes(&GCM_2).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_04_damaged_sealed_bytes_end_connection() {
    check_damaged_sealed_bytes(&SASL_ENCRYPTED).await;
}

/// Unencrypted bytes after the handshake must not be accepted.
async fn check_plain_bytes_are_rejected(modes: &[Mode]) {
    let plain = Message::RpcRequest { request_id: 9, body: Bytes::from("injected") }
        .encode()
        .unwrap()
        .to_vec();
    for mode in modes {
        let (to_server, _) = handshake_lengths(mode).await;
        let server = Server::new(mode.settings).await;
        // Three copies, because with CTR the garbage could look like a frame length.
        let fault = Fault::Replace(Direction::ToServer, to_server, plain.repeat(3));
        let proxy = Proxy::before(server.server.local_addr(), fault).await;
        let end = Client::new(mode.settings);
        let client = end.connect(proxy.address).await.unwrap();
        let error = within(client.send_rpc("sealed")).await.unwrap_err();
        assert!(
            matches!(error.kind(), ErrorKind::Closed | ErrorKind::Io),
            "{}: {error}",
            mode.name
        );
        server.wait_until_empty().await;
        assert_eq!(server.served(), 0, "{}", mode.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ai_07_plain_bytes_after_handshake_are_rejected() {
    check_plain_bytes_are_rejected(&[CTR_1, CTR_2, GCM_1, GCM_2]).await;
    #[cfg(feature = "legacy-auth")]
    check_plain_bytes_are_rejected(&[LEGACY]).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_09_plain_bytes_after_handshake_are_rejected() {
    check_plain_bytes_are_rejected(&[SASL_ENCRYPTED]).await;
}

/// Closing the connection anywhere inside a sealed message fails the pending request and releases
/// the connection.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_sealed_message_ends_connection() {
    for mode in MODES {
        let (to_server, to_client) = handshake_lengths(mode).await;
        let server = Server::new(mode.settings).await;
        for (direction, start) in
            [(Direction::ToServer, to_server), (Direction::ToClient, to_client)]
        {
            for offset in [0, 1, 8, 9, 20, 33] {
                let proxy = Proxy::before(
                    server.server.local_addr(),
                    Fault::Cut(direction, start + offset),
                )
                .await;
                let end = Client::new(mode.settings);
                let client = end.connect(proxy.address).await.unwrap();
                let failed =
                    tokio::time::timeout(Duration::from_secs(10), client.send_rpc(vec![7; 1000]))
                        .await;
                failed.expect("the pending request must fail within 10 s").unwrap_err();
            }
        }
        server.wait_until_empty().await;
    }
}

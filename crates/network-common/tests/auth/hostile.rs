//! Somebody on the path who changes bytes.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use network_common::ErrorKind;
use network_common::protocol::Message;

use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;
use crate::world::*;

/// Bytes of the handshake in each direction, from an undisturbed one.
pub async fn handshake_lengths(mode: &Mode) -> (usize, usize) {
    let server = Server::new(mode.settings).await;
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let _client = Client::new(mode.settings).connect(proxy.address).await.unwrap();
    (proxy.seen(Direction::ToServer).len(), proxy.seen(Direction::ToClient).len())
}

fn impatient(mode: &Mode) -> Settings {
    let mut settings = mode.settings.to_vec();
    settings.push(("spark.network.auth.rpcTimeout", "500ms"));
    settings.leak()
}

/// Runs one handshake with a fault in it; whether both ends were content, and then talked.
async fn survives(server: &Server, settings: Settings, fault: Fault) -> bool {
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

/// Every byte of every handshake message: changed, or the last one that arrives.
#[tokio::test(flavor = "multi_thread")]
async fn ai_03_damaged_handshakes_fail_and_serve_nothing() {
    for mode in MODES {
        let (to_server, to_client) = handshake_lengths(mode).await;
        let settings = impatient(mode);
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
        let survived: Vec<Fault> =
            futures::stream::iter(faults)
                .map(|fault| async move {
                    survives(server, settings, fault.clone()).await.then_some(fault)
                })
                .buffer_unordered(64)
                .filter_map(|survived| async move { survived })
                .collect()
                .await;
        server.is_empty().await;
        // The old engine does not protect the IVs that its server sends: with a wrong one the
        // client's request is served, and it is the client that cannot read the answer. The IVs do
        // not always begin at the same byte: in front of them is a number in as few bytes as it
        // takes.
        let unread = if mode.name == "engine before 3.2" { 14..=18 } else { 0..=0 };
        let served = server.served();
        assert!(
            unread.contains(&(served - survived.len())),
            "{}: {served} served, {survived:?} survived",
            mode.name
        );
        // The receiver ignores the field of an RPC's body length (wire 2): four bytes of each of
        // the two frames.
        let harmless = if mode.name.starts_with("sasl") {
            // What DIGEST-MD5 does not hash: the token's charset and maxbuf, spaces, offers of
            // other ciphers.
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

/// A message behind the handshake, sealed: one wrong bit, or the end, at every place of it. It is
/// not taken for anything, and the connection ends; where only its length grew, when the time for
/// the answer is up.
async fn damaged_sealed_bytes_end_the_connection(mode: &Mode) {
    let (to_server, to_client) = handshake_lengths(mode).await;
    let impatient: Settings =
        [mode.settings, &[("spark.shuffle.io.connectionTimeout", "5s")]].concat().leak();
    for (direction, start) in [(Direction::ToServer, to_server), (Direction::ToClient, to_client)] {
        let server = Server::new(mode.settings).await;
        let address = server.server.local_addr();
        let spoil = |fault: Fault| async move {
            let proxy = Proxy::before(address, fault.clone()).await;
            let end = Client::new(impatient);
            let client = end.connect(proxy.address).await.unwrap();
            let failed = within(client.send_rpc("hello, world")).await;
            let kind = failed.map_err(|error| error.kind());
            assert!(
                matches!(kind, Err(ErrorKind::Closed | ErrorKind::Io | ErrorKind::Timeout)),
                "{} {fault:?}: {kind:?}",
                mode.name
            );
        };
        let faults = (0..first_sealed(mode, direction, start).await).flat_map(|offset| {
            let flip = Fault::Flip(direction, start + offset, (offset % 8) as u8);
            [flip, Fault::Cut(direction, start + offset)]
        });
        let faults: Vec<_> = faults.collect();
        assert!(faults.len() > 100);
        futures::stream::iter(faults.clone()).for_each_concurrent(32, spoil).await;
        server.is_empty().await;
        let served = if direction == Direction::ToServer { 0 } else { faults.len() };
        assert_eq!(server.served(), served, "{} {direction:?}", mode.name);
    }
}

/// How long the first sealed message behind the handshake is: that of the same exchange,
/// undisturbed.
async fn first_sealed(mode: &Mode, direction: Direction, start: usize) -> usize {
    let server = Server::new(mode.settings).await;
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let end = Client::new(mode.settings);
    let client = end.connect(proxy.address).await.unwrap();
    within(client.send_rpc("hello, world")).await.unwrap();
    let seen = proxy.seen(direction);
    u64::from_be_bytes(*seen[start..].first_chunk().unwrap()) as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn gcm_13_damaged_sealed_bytes_end_the_connection() {
    damaged_sealed_bytes_end_the_connection(&GCM_1).await;
    damaged_sealed_bytes_end_the_connection(&GCM_2).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_04_damaged_sealed_bytes_end_the_connection() {
    damaged_sealed_bytes_end_the_connection(&SASL_ENCRYPTED).await;
}

/// Plain bytes behind the handshake are not taken for anything.
async fn plain_bytes_are_refused(modes: &[Mode]) {
    let plain = Message::RpcRequest { request_id: 9, body: Bytes::from("injected") }
        .encode()
        .unwrap()
        .to_vec();
    for mode in modes {
        let (to_server, _) = handshake_lengths(mode).await;
        let server = Server::new(mode.settings).await;
        // Often enough for CTR, where garbage could look like a length.
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
        server.is_empty().await;
        assert_eq!(server.served(), 0, "{}", mode.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ai_07_auth_replay() {
    plain_bytes_are_refused(&[CTR_1, CTR_2, GCM_1, GCM_2]).await;
    #[cfg(feature = "legacy-auth")]
    plain_bytes_are_refused(&[LEGACY]).await;
}

#[cfg(feature = "legacy-auth")]
#[tokio::test(flavor = "multi_thread")]
async fn sasl_09_data_encryption_is_actually_enabled() {
    plain_bytes_are_refused(&[SASL_ENCRYPTED]).await;
}

/// A connection that is cut behind the handshake, at any place of a sealed message, fails what
/// waits and is gone.
#[tokio::test(flavor = "multi_thread")]
async fn truncated_sealed_messages_end_the_connection() {
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
                failed.expect("nothing hangs").unwrap_err();
            }
        }
        server.is_empty().await;
    }
}

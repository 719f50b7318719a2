//! One pool for all spellings of an address, and canonical addresses of peers: rows `fault_t8` and
//! `fault_t12`.

use std::net::{IpAddr, SocketAddr};

use network_common::{ErrorKind, NoOpRpcHandler, PeerAddress};

use crate::support::*;

#[test]
fn fault_t12_all_spellings_of_address_are_equal() {
    for spellings in [
        &["::1", "[::1]", "0:0:0:0:0:0:0:1", "[0::0001]"][..],
        &["fe80::a%2", "[FE80::A%2]", "fe80:0::000a%2"],
        &["127.0.0.1", "::ffff:127.0.0.1", "[::FFFF:7f00:1]"],
        &["driver.example.com", "Driver.Example.COM"],
    ] {
        for spelling in spellings {
            let address = PeerAddress::new(*spelling, 7077);
            assert_eq!(address, PeerAddress::new(spellings[0], 7077), "{spelling}");
            assert_eq!(address.host(), spellings[0]);
        }
    }
    let parsed: PeerAddress = "[0:0::1]:7".parse().unwrap();
    assert_eq!(parsed, PeerAddress::new("::1", 7));
    assert_eq!(parsed.to_string(), "[::1]:7");
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().unwrap();
    assert_eq!(PeerAddress::from(mapped), PeerAddress::new("10.0.0.1", 7));
    assert_eq!(PeerAddress::from(mapped).to_string(), "10.0.0.1:7");
    let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    assert_eq!(PeerAddress::from((mapped, 7)), PeerAddress::new("10.0.0.1", 7));
    assert_ne!(PeerAddress::new("fe80::a%2", 7), PeerAddress::new("fe80::a%3", 7));
    assert_ne!(PeerAddress::new("::1", 7), PeerAddress::new("::1", 8));
}

#[tokio::test]
async fn fault_t12_all_spellings_share_one_pooled_connection() {
    let serving = context(conf(&[]), Handler::new());
    let factory = context(conf(&[]), NoOpRpcHandler::new()).create_client_factory();
    let v4 = serve(&serving).await;
    let port = v4.local_addr().port();
    let first = within(factory.create_client(("127.0.0.1", port))).await.unwrap();
    for host in ["::ffff:127.0.0.1", "[::ffff:127.0.0.1]", "[::FFFF:7F00:1]"] {
        let again = within(factory.create_client((host, port))).await.unwrap();
        assert_eq!(again.id(), first.id(), "{host}");
    }
    let Ok(v6) = serving.create_server("[::1]:0").await else { return };
    let port = v6.local_addr().port();
    let first = within(factory.create_client(("::1", port))).await.unwrap();
    for host in ["[::1]", "0:0:0:0:0:0:0:1", "[0::1]"] {
        let again = within(factory.create_client((host, port))).await.unwrap();
        assert_eq!(again.id(), first.id(), "{host}");
    }
    assert_eq!(within(first.send_rpc("x")).await.unwrap(), "x");
}

/// A server on `[::]` accepts IPv4 peers, whose addresses the system reports in IPv6 form.
#[tokio::test]
async fn fault_t12_ipv4_peer_of_dual_stack_server_has_ipv4_address() {
    let handler = Handler::new().on_rpc(|client, _, callback| {
        callback.reply(format!("{} {}", client.peer_addr(), client.local_addr()));
    });
    let serving = context(conf(&[]), handler);
    let Ok(server) = serving.create_server("[::]:0").await else { return };
    let factory = context(conf(&[]), NoOpRpcHandler::new()).create_client_factory();
    let address = ("127.0.0.1", server.local_addr().port());
    let client = within(factory.create_client(address)).await.unwrap();
    let seen = within(client.send_rpc("who am I?")).await.unwrap();
    assert_eq!(seen, format!("{} {}", client.local_addr(), client.peer_addr()));
    assert!(client.peer_addr().is_ipv4(), "{client:?}");
}

/// The scope of an address has a meaning on this machine only, so no certificate contains it.
#[cfg(feature = "tls")]
#[tokio::test]
async fn fault_t12_certificate_of_scoped_address_needs_no_scope() {
    use network_common::{TransportConf, TransportContext};

    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["::1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (chain, key) =
        (file_of(certificate.pem().as_bytes()), file_of(key.serialize_pem().as_bytes()));
    let settings = [
        ("spark.ssl.rpc.enabled", "true"),
        ("spark.ssl.rpc.certChain", chain.path().to_str().unwrap()),
        ("spark.ssl.rpc.privateKey", key.path().to_str().unwrap()),
    ];
    let conf = TransportConf::from_settings("rpc", settings).unwrap();
    let context = TransportContext::new(conf, Handler::new());
    let Ok(server) = context.create_server("[::1]:0").await else { return };
    let factory = context.create_client_factory();
    for host in ["::1%1", "[::1%1]", "::1", "[0::1%1]"] {
        let address = (host, server.local_addr().port());
        let client = within(factory.create_client(address)).await.unwrap();
        assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x", "{host}");
    }
}

#[tokio::test]
async fn fault_t12_mapped_address_can_be_bound_and_reached() {
    let server = context(conf(&[]), Handler::new()).create_server("[::ffff:127.0.0.1]:0").await;
    let server = server.unwrap();
    assert!(server.local_addr().is_ipv4(), "{}", server.local_addr());
}

/// The system connects a socket to itself when it chooses the port of the peer as local port.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn fault_t8_retries_to_unused_ephemeral_port_never_succeed() {
    let factory = context(conf(&[]), NoOpRpcHandler::new()).create_client_factory();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Linux chooses the other parity for connecting than for listening.
    let port = probe.local_addr().unwrap().port() ^ 1;
    if std::net::TcpListener::bind(("127.0.0.1", port)).is_err() {
        return; // In use by another process.
    }
    drop(probe);
    let begun = std::time::Instant::now();
    let mut self_connects = 0;
    for _ in 0..40_000 {
        let connecting = factory.create_unmanaged_client(("127.0.0.1", port));
        let error = within(connecting).await.expect_err("no server listens");
        assert_eq!(error.kind(), ErrorKind::Connect);
        assert!(error.is_retryable());
        self_connects += usize::from(full_text(&error).contains("connected to itself"));
        if self_connects == 3 || begun.elapsed().as_secs() > 20 {
            break;
        }
    }
    std::net::TcpListener::bind(("127.0.0.1", port)).expect("a server can bind the port");
}

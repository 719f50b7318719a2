//! Connecting to hosts with several addresses, and to one's own socket.

use std::time::Instant;

use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::net::happy_eyeballs::{NEXT_ATTEMPT_DELAY, alternate_families};

async fn dial_tcp(addresses: Vec<SocketAddr>, conf: &TransportConf) -> io::Result<TcpStream> {
    dial_any(addresses, |address| dial_one(address, conf)).await
}

fn conf() -> TransportConf {
    TransportConf::new("rpc")
}

/// Returns a listener on `host` whose backlog is full, so that it ignores connection requests.
async fn swallowing_listener(host: &str) -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{host}:0").parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(Ok(stream)) =
        timeout(Duration::from_millis(300), TcpStream::connect(address)).await
    {
        filling.push(stream);
        assert!(filling.len() < 100, "the backlog does not fill");
    }
    (listener, filling)
}

/// The address that does not answer costs 250 ms, and its attempt does not go on afterwards.
#[tokio::test]
async fn fault_t7_next_address_is_tried_while_first_swallows_syns() {
    let (swallowing, mut filling) = swallowing_listener("127.0.0.1").await;
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let expected = listening.local_addr().unwrap();
    let started = Instant::now();
    let addresses = vec![swallowing.local_addr().unwrap(), expected];
    let stream = dial_tcp(addresses, &conf()).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), expected);
    let took = started.elapsed();
    assert!(took >= NEXT_ATTEMPT_DELAY && took < 8 * NEXT_ATTEMPT_DELAY, "{took:?}");
    let known: Vec<_> = filling.iter().map(|stream| stream.local_addr().unwrap()).collect();
    while let Ok(Ok((_, peer))) = timeout(Duration::from_secs(2), swallowing.accept()).await {
        // The attempts that filled the backlog may repeat their requests as well.
        assert!(known.contains(&peer) || filling.is_empty(), "the lost attempt goes on");
    }
    filling.clear();
}

#[tokio::test]
async fn fault_t7_refused_address_is_skipped_at_once() {
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let expected = listening.local_addr().unwrap();
    let started = Instant::now();
    let stream = dial_tcp(vec![refusing, refusing, expected], &conf()).await.unwrap();
    assert_eq!(stream.peer_addr().unwrap(), expected);
    assert!(started.elapsed() < NEXT_ATTEMPT_DELAY, "{:?}", started.elapsed());
}

#[tokio::test]
async fn fault_t7_error_of_last_address_is_reported() {
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = dial_tcp(vec![refusing, refusing], &conf()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(dial_tcp(Vec::new(), &conf()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn fault_t7_address_families_alternate() {
    let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    for (resolved, ordered) in [
        (
            &["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "1.1.1.2:1"][..],
            &["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"][..],
        ),
        (&["1.1.1.1:1", "[::1]:1", "[::2]:1"], &["1.1.1.1:1", "[::1]:1", "[::2]:1"]),
        (&["1.1.1.1:1", "1.1.1.2:1"], &["1.1.1.1:1", "1.1.1.2:1"]),
        (&[], &[]),
    ] {
        assert_eq!(alternate_families(parse(resolved)), parse(ordered));
    }
}

/// Connects a socket to the address that it is bound to, as a retry loop to a port in the ephemeral
/// range does by chance.
#[tokio::test]
async fn fault_t8_socket_connected_to_itself_counts_as_refused() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket2::SockRef::from(&socket).local_addr().unwrap().as_socket().unwrap();
    let Ok(stream) = socket.connect(address).await else {
        return; // This system has no simultaneous open.
    };
    let error = reject_self_connect(&stream).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    drop(stream);
    TcpListener::bind(address).await.expect("the port must be free for a server at once");
}

#[tokio::test]
async fn fault_t8_connection_within_one_process_is_accepted() {
    let listening = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = dial_tcp(vec![listening.local_addr().unwrap()], &conf()).await.unwrap();
    assert_ne!(stream.local_addr().unwrap(), stream.peer_addr().unwrap());
}

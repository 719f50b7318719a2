//! M6: a peer cannot measure which applications a server knows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::*;
use crate::proxy::{Direction, Fault, Proxy};
use crate::support::*;

const ROUNDS: usize = 200;

/// Returns what a client with a wrong secret sends first.
async fn first_message(server: &Server, mode: &Mode, app: &'static str) -> Vec<u8> {
    let proxy = Proxy::before(server.server.local_addr(), Fault::None).await;
    let client = Client::with(mode.settings, app, "a wrong secret", None);
    client.connect(proxy.address).await.unwrap_err();
    let sent = proxy.seen(Direction::ToServer);
    let length = u64::from_be_bytes(sent[..8].try_into().unwrap()) as usize;
    sent[..length].to_vec()
}

/// Sends the message and returns the time until the first byte of the response.
async fn time_response(server: SocketAddr, message: &[u8]) -> Duration {
    let mut peer = TcpStream::connect(server).await.unwrap();
    peer.set_nodelay(true).unwrap();
    let started = Instant::now();
    peer.write_all(message).await.unwrap();
    within(peer.read_u8()).await.unwrap();
    started.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

/// Returns the ratio of the medians of many interleaved measurements.
async fn ratio(server: SocketAddr, unknown: &[u8], known: &[u8]) -> f64 {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (times, message) in times.iter_mut().zip([unknown, known]) {
            times.push(time_response(server, message).await);
        }
    }
    let [unknown, known] = times.map(median);
    unknown / known
}

#[tokio::test]
async fn fault_m6_unknown_application_takes_as_long_as_known_one() {
    for mode in MODES {
        let server = Server::new(mode.settings).await;
        let known = first_message(&server, mode, APP).await;
        let unknown = first_message(&server, mode, "app-2").await;
        assert_eq!(known.len(), unknown.len());
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let measured = ratio(server.server.local_addr(), &unknown, &known).await;
            ratios.push(measured);
            if (0.85..1.18).contains(&measured) {
                break;
            }
        }
        let last = ratios[ratios.len() - 1];
        assert!((0.85..1.18).contains(&last), "{}: {ratios:?}", mode.name);
        assert_eq!(server.served(), 0);
    }
}

/// The responses do not differ either.
#[tokio::test]
async fn fault_m6_unknown_application_gets_same_response_as_wrong_secret() {
    for mode in MODES.iter().filter(|mode| mode.name != SASL.name) {
        let server = Server::new(mode.settings).await;
        let mut responses = Vec::new();
        for app in [APP, "app-2"] {
            let message = first_message(&server, mode, app).await;
            let mut peer = TcpStream::connect(server.server.local_addr()).await.unwrap();
            peer.write_all(&message).await.unwrap();
            let mut response = vec![0; 17];
            within(peer.read_exact(&mut response)).await.unwrap();
            // The request ids are those of the recorded messages; length and type are compared.
            responses.push(response[..9].to_vec());
        }
        assert_eq!(responses[0], responses[1], "{}", mode.name);
    }
}

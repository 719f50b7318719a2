//! Somebody on the path: sees every byte, and may change them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// What happens to the bytes of one direction.
#[derive(Debug, Clone)]
pub enum Fault {
    None,
    /// One bit of the byte at this place is flipped.
    Flip(Direction, usize, u8),
    /// The direction ends before this place.
    Cut(Direction, usize),
    /// Other bytes instead of all from this place on.
    Replace(Direction, usize, Vec<u8>),
    /// Passes on so many bytes at a time.
    Narrow(Direction, usize),
    /// Waits this long after every read, so that what follows comes with it.
    Gather(Direction, Duration),
}

pub struct Proxy {
    pub address: SocketAddr,
    seen: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl Proxy {
    /// Stands before `server`, for one connection.
    pub async fn before(server: SocketAddr, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
        let log = seen.clone();
        tokio::spawn(async move {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(server).await.unwrap();
            for stream in [&client, &server] {
                stream.set_nodelay(true).unwrap();
            }
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(forward(
                from_client,
                to_server,
                Direction::ToServer,
                fault.clone(),
                log.clone(),
            ));
            forward(from_server, to_client, Direction::ToClient, fault, log).await;
        });
        Self { address, seen }
    }

    /// The bytes as they were sent.
    pub fn seen(&self, direction: Direction) -> Vec<u8> {
        self.seen.lock()[direction as usize].clone()
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    fault: Fault,
    log: Arc<Mutex<[Vec<u8>; 2]>>,
) {
    let width = match fault {
        Fault::Narrow(narrowed, width) if narrowed == direction => width,
        _ => 64 << 10,
    };
    let (mut buffer, mut place) = (vec![0; width], 0);
    loop {
        if let Fault::Gather(gathered, pause) = fault {
            if gathered == direction && from.readable().await.is_ok() {
                tokio::time::sleep(pause).await;
            }
        }
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let bytes = &mut buffer[..count];
        log.lock()[direction as usize].extend_from_slice(bytes);
        let inside = |at: usize| (place..place + count).contains(&at).then(|| at - place);
        let written = match &fault {
            Fault::Flip(flipped, at, bit) if *flipped == direction => {
                if let Some(at) = inside(*at) {
                    bytes[at] ^= 1 << bit;
                }
                to.write_all(bytes).await
            }
            Fault::Cut(cut, at) if *cut == direction => {
                if let Some(at) = inside(*at) {
                    let _ = to.write_all(&bytes[..at]).await;
                    return;
                }
                to.write_all(bytes).await
            }
            Fault::Replace(replaced, at, other) if *replaced == direction => {
                if let Some(at) = inside(*at) {
                    let _ = to.write_all(&[&bytes[..at], other].concat()).await;
                    // The connection stays open; what else comes is swallowed.
                    while let Ok(1..) = from.read(&mut buffer).await {}
                    return;
                }
                to.write_all(bytes).await
            }
            _ => to.write_all(bytes).await,
        };
        if written.is_err() {
            return;
        }
        place += count;
    }
}

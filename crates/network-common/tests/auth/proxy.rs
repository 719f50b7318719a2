//! A proxy between client and server that records all bytes and can change them.

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

/// A change to the bytes of one direction.
#[derive(Debug, Clone)]
pub enum Fault {
    None,
    /// Flips one bit of the byte at this offset.
    Flip(Direction, usize, u8),
    /// Closes the direction before the byte at this offset.
    Cut(Direction, usize),
    /// Replaces everything from this offset on.
    Replace(Direction, usize, Vec<u8>),
    /// Forwards this number of bytes at a time.
    Narrow(Direction, usize),
    /// Waits this long before every read, so that later bytes arrive in the same read.
    Gather(Direction, Duration),
}

/// A proxy for one connection.
pub struct Proxy {
    pub address: SocketAddr,
    seen: Arc<Mutex<[Vec<u8>; 2]>>,
}

impl Proxy {
    /// Starts a proxy in front of `server`.
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

    /// Returns the bytes as they were sent, before any change.
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
    let (mut buffer, mut offset) = (vec![0; width], 0);
    loop {
        if let Fault::Gather(gathered, pause) = fault
            && gathered == direction
            && from.readable().await.is_ok()
        {
            tokio::time::sleep(pause).await;
        }
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let bytes = &mut buffer[..count];
        log.lock()[direction as usize].extend_from_slice(bytes);
        let inside = |at: usize| (offset..offset + count).contains(&at).then(|| at - offset);
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
                    // The connection stays open; later bytes are discarded.
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
        offset += count;
    }
}

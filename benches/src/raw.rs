//! The limits: what plain tokio does when nothing stands between it and the socket.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// Header bytes of an RPC frame, so that limits move as many bytes as we do.
pub const HEADER: usize = 21;

/// Echoes whatever a read brings.
///
/// # Errors
/// When it cannot listen.
pub async fn serve_echo(address: &str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let count = stream.read(&mut buffer).await?;
                    if count == 0 {
                        return std::io::Result::Ok(());
                    }
                    stream.write_all(&buffer[..count]).await?;
                }
            });
        }
    });
    Ok(address)
}

/// A ping-pong with messages of `size` bytes.
///
/// # Errors
/// When the socket fails.
pub async fn ping_pong(address: SocketAddr, size: usize, count: usize) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let message = vec![7; size];
    let mut buffer = vec![0; size];
    let mut latencies = Vec::with_capacity(count);
    for _ in 0..count {
        let sent = Instant::now();
        stream.write_all(&message).await?;
        stream.read_exact(&mut buffer).await?;
        latencies.push(sent.elapsed());
    }
    Ok(latencies)
}

/// The batched limit: decode all that a read brought, answer or ask all with one write, a oneshot per call.
///
/// # Errors
/// When the socket fails.
pub async fn echo(address: SocketAddr, size: usize, window: usize, count: usize) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let message = vec![7; size];
    let mut buffer = vec![0; 256 << 10];
    let (mut out, mut filled) = (Vec::new(), 0);
    let mut waiting = VecDeque::new();
    let (mut sent, mut done) = (0, 0);
    let begun = Instant::now();
    while done < count {
        while waiting.len() < window && sent < count {
            waiting.push_back(oneshot::channel::<Vec<u8>>());
            out.extend_from_slice(&message);
            sent += 1;
        }
        stream.write_all(&out).await?;
        out.clear();
        filled += stream.read(&mut buffer[filled..]).await?;
        let whole = filled / size * size;
        for frame in buffer[..whole].chunks_exact(size) {
            if let Some((sender, receiver)) = waiting.pop_front() {
                let _ = sender.send(frame.to_vec());
                receiver.await?;
                done += 1;
            }
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
    Ok(begun.elapsed())
}

/// Sends regions of `file`, `size` bytes after each 8-byte request, by `sendfile`.
///
/// # Errors
/// When it cannot listen.
pub async fn serve_file(address: &str, file: PathBuf, length: u64) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let file = Arc::new(File::open(file)?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let file = Arc::clone(&file);
            tokio::spawn(async move {
                stream.set_nodelay(true)?;
                let mut start = 0;
                while let Ok(size) = stream.read_u64().await {
                    let mut left = size;
                    let mut position = start % length;
                    start += size;
                    while left > 0 {
                        let sent = stream
                            .async_io(Interest::WRITABLE, || {
                                Ok(rustix::fs::sendfile(
                                    stream.as_fd(),
                                    file.as_fd(),
                                    Some(&mut position),
                                    usize::try_from(left).unwrap_or(usize::MAX),
                                )?)
                            })
                            .await?;
                        left -= sent as u64;
                    }
                }
                std::io::Result::Ok(())
            });
        }
    });
    Ok(address)
}

/// Reads `count` regions of `size` bytes into one reused buffer, always `window` asked for.
///
/// # Errors
/// When the socket fails.
pub async fn fetch(
    address: SocketAddr,
    size: usize,
    window: usize,
    count: usize,
) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = vec![1; size];
    let begun = Instant::now();
    for _ in 0..window.min(count) {
        stream.write_u64(size as u64).await?;
    }
    for done in 0..count {
        stream.read_exact(&mut buffer).await?;
        if done + window < count {
            stream.write_u64(size as u64).await?;
        }
    }
    Ok(begun.elapsed())
}

//! The limit of an API that many tasks can call at the same time.
//!
//! It consists of a table of pending calls, a oneshot for each call, a task that writes all queued
//! requests, and a task that reads.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bench_protocol::Case;
use bytes::Bytes;
use parking_lot::Mutex;
use slab::Slab;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

use super::{ReadBuffer, connect, put_frame};
use crate::load::{Request, Target};

/// A connection.
///
/// `YIELDS`: the writer yields once before each write, so that other tasks can add requests to it.
#[derive(Clone, Debug)]
pub struct Smallest<const YIELDS: bool>(Arc<CallQueue>);

#[derive(Debug, Default)]
struct CallQueue {
    calls: Mutex<Calls>,
    has_requests: Notify,
}

#[derive(Debug, Default)]
struct Calls {
    pending: Slab<oneshot::Sender<Bytes>>,
    /// The frames of the requests that were not written yet.
    requests: Vec<u8>,
}

impl<const YIELDS: bool> Target for Smallest<YIELDS> {
    const CASES: &'static [Case] = &[Case::Echo];
    const IS_EAGER: bool = true;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let (read_half, write_half) = connect(address).await?.into_split();
        let queue = Arc::<CallQueue>::default();
        tokio::spawn(write(Arc::clone(&queue), write_half, YIELDS));
        tokio::spawn(read(Arc::clone(&queue), read_half));
        Ok(Self(queue))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        let Calls { pending, requests } = &mut *self.0.calls.lock();
        put_frame(requests, pending.insert(sender) as u64, &request.body);
        self.0.has_requests.notify_one();
        let size = request.size;
        async move {
            anyhow::ensure!(receiver.await?.len() == size, "the response has a wrong length");
            Ok(())
        }
    }
}

async fn write(
    queue: Arc<CallQueue>,
    mut stream: OwnedWriteHalf,
    yields: bool,
) -> anyhow::Result<()> {
    let mut requests = Vec::new();
    loop {
        queue.has_requests.notified().await;
        if yields {
            tokio::task::yield_now().await;
        }
        std::mem::swap(&mut requests, &mut queue.calls.lock().requests);
        stream.write_all(&requests).await?;
        requests.clear();
    }
}

async fn read(queue: Arc<CallQueue>, mut stream: OwnedReadHalf) -> anyhow::Result<()> {
    let mut read = ReadBuffer::new();
    let mut responses = Vec::new();
    loop {
        let count = stream.read(read.unfilled()).await?;
        anyhow::ensure!(count > 0, "the server has closed the connection");
        read.on_read(count, |id, body| responses.push((id as usize, Bytes::copy_from_slice(body))));
        let mut calls = queue.calls.lock();
        for (id, body) in responses.drain(..) {
            let sender = calls.pending.try_remove(id).context("no request has this id")?;
            // This fails if the caller was dropped.
            let _ = sender.send(body);
        }
    }
}

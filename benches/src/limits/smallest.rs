//! The smallest real API: whoever holds it may call; a table of pending calls, a oneshot each, one
//! task that writes.

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

/// A connection. `YIELDS`: the writer yields once before it writes, so that others add to what it
/// takes.
#[derive(Clone, Debug)]
pub struct Smallest<const YIELDS: bool>(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    queued: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: Slab<oneshot::Sender<Bytes>>,
    requests: Vec<u8>,
}

impl<const YIELDS: bool> Target for Smallest<YIELDS> {
    const CASES: &'static [Case] = &[Case::Echo];
    const QUEUES: bool = true;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let (reading, writing) = connect(address).await?.into_split();
        let shared = Arc::<Shared>::default();
        tokio::spawn(write(Arc::clone(&shared), writing, YIELDS));
        tokio::spawn(read(Arc::clone(&shared), reading));
        Ok(Self(shared))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (sender, receiver) = oneshot::channel();
        let State { pending, requests } = &mut *self.0.state.lock();
        put_frame(requests, pending.insert(sender) as u64, &request.body);
        self.0.queued.notify_one();
        let size = request.size;
        async move {
            anyhow::ensure!(receiver.await?.len() == size, "an answer of the wrong length");
            Ok(())
        }
    }
}

async fn write(
    shared: Arc<Shared>,
    mut stream: OwnedWriteHalf,
    yields: bool,
) -> anyhow::Result<()> {
    let mut requests = Vec::new();
    loop {
        shared.queued.notified().await;
        if yields {
            tokio::task::yield_now().await;
        }
        std::mem::swap(&mut requests, &mut shared.state.lock().requests);
        stream.write_all(&requests).await?;
        requests.clear();
    }
}

async fn read(shared: Arc<Shared>, mut stream: OwnedReadHalf) -> anyhow::Result<()> {
    let mut read = ReadBuffer::new();
    let mut answers = Vec::new();
    loop {
        let count = stream.read(read.space()).await?;
        anyhow::ensure!(count > 0, "the server has gone");
        read.frames(count, |id, body| answers.push((id as usize, Bytes::copy_from_slice(body))));
        let mut state = shared.state.lock();
        for (id, body) in answers.drain(..) {
            let sender = state.pending.try_remove(id).context("an answer to nothing")?;
            // The caller may have gone.
            let _ = sender.send(body);
        }
    }
}

//! The server of the application protocol.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::{BoxFuture, try_join_all};
use network_common::protocol::MergedBlockMetaRequest;
use network_common::{
    BoxError, ManagedBuffer, MergedBlockMetaCallback, OneForOneStreamManager, RpcHandler,
    RpcResponseCallback, StreamBody, StreamManager, StreamOptions, TransportClient,
    TransportContext,
};
use sha2::{Digest, Sha256};

use crate::protocol::{digest_response, pattern, split_verb};

const MERGED_CHUNKS: i32 = 3;
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until the end of stdin.
pub(crate) async fn serve(context: TransportContext, port: u16) -> Result<()> {
    let server = context.create_server(("127.0.0.1", port)).await?;
    println!("LISTENING {}", server.local_addr().port());
    // Input has no meaning. Stdin ends when the parent process closes it or exits.
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    server.close(CLOSE_TIMEOUT).await;
    Ok(())
}

#[derive(Default)]
pub(crate) struct PeerHandler {
    streams: Streams,
    one_ways: AtomicU64,
    last_digest: Arc<Mutex<Option<String>>>,
}

impl RpcHandler for PeerHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let (verb, argument) = split_verb(&message);
        match verb {
            b"callback:" => call_back(client, argument, callback),
            // The callback is leaked, because dropping it would fail the request.
            b"hang" => std::mem::forget(callback),
            b"close" => {
                client.close();
                std::mem::forget(callback);
            }
            _ => match self.respond(client, verb, message.slice_ref(argument)) {
                Ok(response) => callback.reply(response),
                Err(error) => callback.fail(error),
            },
        }
    }

    fn receive_one_way(&self, _: &TransportClient, _: Bytes) {
        self.one_ways.fetch_add(1, Ordering::Relaxed);
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        meta: Bytes,
        mut data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let last_digest = Arc::clone(&self.last_digest);
        Box::pin(async move {
            if meta != "digest" {
                return Err(format!("unknown upload {}", String::from_utf8_lossy(&meta)).into());
            }
            let mut digest = Sha256::new();
            let mut length = 0;
            while let Some(piece) = data.next_piece().await {
                let piece = piece?;
                digest.update(&piece);
                length += piece.len() as u64;
            }
            let response = digest_response(digest, length);
            *last_digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(response.clone());
            Ok(response.into())
        })
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        &self.streams
    }

    fn receive_merged_block_meta(
        &self,
        _: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        let MergedBlockMetaRequest { app_id, shuffle_id, shuffle_merge_id, reduce_id, .. } =
            request;
        if reduce_id < 0 {
            return callback.fail("no merged block");
        }
        let body = format!("merged:{app_id}:{shuffle_id}:{shuffle_merge_id}:{reduce_id}");
        callback.reply(MERGED_CHUNKS, body.into_bytes());
    }
}

impl PeerHandler {
    /// Returns the response to a request that needs no further requests.
    fn respond(&self, client: &TransportClient, verb: &[u8], argument: Bytes) -> Result<Bytes> {
        let text = || std::str::from_utf8(&argument).context("the argument is not UTF-8");
        match verb {
            b"echo:" => Ok(argument),
            b"fail:" => Err(anyhow::Error::msg(text()?.to_owned())),
            b"open:" => Ok(id(self.streams.open_memory(client, text()?)?)),
            b"openfile:" => Ok(id(self.streams.open_file(client, text()?)?)),
            b"count" => Ok(self.one_ways.load(Ordering::Relaxed).to_string().into()),
            b"lastdigest" => {
                let last = self.last_digest.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(last.clone().context("the server has received no upload")?.into())
            }
            _ => anyhow::bail!("unknown request {}", String::from_utf8_lossy(verb)),
        }
    }
}

fn id(stream_id: i64) -> Bytes {
    Bytes::copy_from_slice(&stream_id.to_be_bytes())
}

/// Sends RPCs to the client, and responds when all of them have responses.
///
/// A task of its own awaits the responses, because this runs on the task that reads them.
fn call_back(client: &TransportClient, argument: &[u8], callback: RpcResponseCallback) {
    let Ok(Ok(count)) = std::str::from_utf8(argument).map(str::parse::<u32>) else {
        return callback.fail("callback: needs a number");
    };
    let requests: Vec<_> = (0..count).map(|i| client.send_rpc(format!("cb:{i}"))).collect();
    tokio::spawn(async move {
        let acks = match try_join_all(requests).await {
            Ok(acks) => acks,
            Err(error) => return callback.fail(error),
        };
        match acks.iter().zip(0..).find(|(ack, i)| **ack != format!("cb-ack:{i}")) {
            None => callback.reply(format!("done:{count}")),
            Some((ack, i)) => {
                let ack = String::from_utf8_lossy(ack);
                callback.fail(format!("expected cb-ack:{i}, received {ack}"))
            }
        }
    });
}

/// Serves chunks with the crate's `OneForOneStreamManager`, and streams by name.
#[derive(Default)]
struct Streams {
    chunks: OneForOneStreamManager,
}

impl Streams {
    fn open_memory(&self, client: &TransportClient, argument: &str) -> Result<i64> {
        let (count, size) = argument.split_once(':').context("open: needs <n>:<size>")?;
        let (count, size): (usize, usize) = (count.parse()?, size.parse()?);
        let chunks = (0..count).map(move |i| pattern(i, size).into());
        Ok(self.register(client, chunks))
    }

    fn open_file(&self, client: &TransportClient, argument: &str) -> Result<i64> {
        // The path may contain colons, so the split begins at the end.
        let mut parts = argument.rsplitn(3, ':');
        let (Some(size), Some(count), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            anyhow::bail!("openfile: needs <path>:<n>:<size>");
        };
        let (count, size): (u64, u64) = (count.parse()?, size.parse()?);
        let path = path.to_owned();
        let chunks = (0..count).map(move |i| ManagedBuffer::file(&path, i * size..(i + 1) * size));
        Ok(self.register(client, chunks))
    }

    fn register(
        &self,
        client: &TransportClient,
        chunks: impl Iterator<Item = ManagedBuffer> + Send + 'static,
    ) -> i64 {
        self.chunks.register_stream(
            chunks,
            StreamOptions::default().connection(client).materialized_on_next(),
        )
    }
}

impl StreamManager for Streams {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.chunks.get_chunk(client, stream_id, chunk_index)
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            if let Some(size) = stream_id.strip_prefix("pattern:") {
                return Ok(Some(pattern(0, size.parse()?).into()));
            }
            let Some(path) = stream_id.strip_prefix("file:") else { return Ok(None) };
            let path = path.to_owned();
            let segment = tokio::task::spawn_blocking(move || {
                let metadata = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
                Some(ManagedBuffer::file(path, 0..metadata.len()))
            });
            Ok(segment.await?)
        })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        self.chunks.connection_terminated(client);
    }
}

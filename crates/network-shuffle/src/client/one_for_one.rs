//! One attempt to fetch blocks from a peer (Spark's `OneForOneBlockFetcher`).

use std::collections::VecDeque;

use network_common::{ManagedBuffer, PeerAddress, RequestFuture, TransportClient};

use super::error::{BlockError, FETCH};
use super::open_request::OpenRequest;
use super::read_ahead::{Progress, ReadAhead};
use super::target::{FetchTarget, download};
use crate::protocol::BlockTransferMessage;

/// Opens a stream, and passes its blocks to `on_block` in the order of the request.
///
/// # Errors
/// The first failure. As in Spark, the blocks behind it have failed, too: a peer serves the chunks
/// of a stream only in order.
pub(super) async fn fetch(
    client: &TransportClient,
    address: &PeerAddress,
    request: &OpenRequest,
    target: &FetchTarget,
    read_ahead: &ReadAhead,
    mut on_block: impl FnMut(ManagedBuffer),
) -> Result<(), BlockError> {
    let (stream_id, chunks) = open(client, address, request).await?;
    match target {
        FetchTarget::Memory => {
            let request = |index| client.fetch_chunk(stream_id, index);
            let mut responses = Responses::new(client, address, chunks, read_ahead, request);
            while let Some(body) = responses.next().await? {
                responses.progress.received_bytes += body.len() as u64;
                on_block(body.into());
            }
        }
        FetchTarget::Files(directory) => {
            let request = |index| client.stream(&format!("{stream_id}_{index}"));
            let mut responses = Responses::new(client, address, chunks, read_ahead, request);
            while let Some(body) = responses.next().await? {
                on_block(download(body, directory, address).await?);
            }
        }
    }
    Ok(())
}

/// The responses to the requests of all chunks of a stream, in order.
struct Responses<'a, T, R> {
    client: &'a TransportClient,
    address: &'a PeerAddress,
    chunks: i32,
    read_ahead: &'a ReadAhead,
    request: R,
    next_request: i32,
    pending: VecDeque<RequestFuture<T>>,
    progress: Progress,
}

impl<'a, T, R: Fn(i32) -> RequestFuture<T>> Responses<'a, T, R> {
    fn new(
        client: &'a TransportClient,
        address: &'a PeerAddress,
        chunks: i32,
        read_ahead: &'a ReadAhead,
        request: R,
    ) -> Self {
        Self {
            client,
            address,
            chunks,
            read_ahead,
            request,
            next_request: 0,
            pending: VecDeque::new(),
            progress: Progress::default(),
        }
    }

    async fn next(&mut self) -> Result<Option<T>, BlockError> {
        while self.next_request < self.chunks {
            self.progress.pending = self.pending.len();
            self.read_ahead.wait(&self.progress).await;
            if !self.read_ahead.permits(&self.progress) {
                break;
            }
            let ready = self.client.ready().await;
            ready.map_err(BlockError::transport(FETCH, self.address))?;
            self.pending.push_back((self.request)(self.next_request));
            self.next_request += 1;
        }
        let Some(response) = self.pending.pop_front() else { return Ok(None) };
        let response = response.await.map_err(BlockError::transport(FETCH, self.address))?;
        self.progress.received_chunks += 1;
        Ok(Some(response))
    }
}

/// Returns the id of the opened stream and the number of its chunks.
///
/// Spark does not compare the number of chunks with that of the blocks, so a peer that serves
/// fewer would leave blocks without a result.
async fn open(
    client: &TransportClient,
    address: &PeerAddress,
    request: &OpenRequest,
) -> Result<(i64, i32), BlockError> {
    const OPEN: &str = "opening a stream of blocks";
    let answer = client.send_rpc(request.message.encode()).await;
    let answer = answer.map_err(BlockError::transport(OPEN, address))?;
    match BlockTransferMessage::decode(&answer) {
        Ok(BlockTransferMessage::StreamHandle { stream_id, num_chunks })
            if usize::try_from(num_chunks) == Ok(request.len) =>
        {
            Ok((stream_id, num_chunks))
        }
        Ok(BlockTransferMessage::StreamHandle { num_chunks, .. }) => {
            let problem = format!("the stream has {num_chunks} chunks for {} blocks", request.len);
            Err(BlockError::unexpected(OPEN, address, problem))
        }
        Ok(_) => Err(BlockError::unexpected(OPEN, address, "the answer is no StreamHandle")),
        Err(error) => Err(BlockError::unexpected(OPEN, address, error.to_string())),
    }
}

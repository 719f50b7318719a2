//! The server of the plays of network-common.

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, OneForOneStreamManager, RpcHandler, RpcResponseCallback, StreamBody,
    StreamManager, StreamOptions, TransportClient,
};
use parking_lot::Mutex;

use crate::INTENDED_FAILURE;

/// Returns the bytes of chunk `index` of a stream.
pub(super) fn pattern(index: usize, size: usize) -> Bytes {
    (0..size).map(|byte| (index * 131 + byte * 7) as u8).collect()
}

/// Returns what the server replies to an upload.
pub(super) fn digest(data: &[u8]) -> Bytes {
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    format!("{} {sum}", data.len()).into()
}

/// Serves echoes, chunks, streams and uploads; their content is that of [`pattern`].
#[derive(Default)]
pub(super) struct BulkHandler {
    streams: OneForOneStreamManager,
    /// Callbacks of requests that get no response.
    kept: Mutex<Vec<RpcResponseCallback>>,
}

impl BulkHandler {
    /// Returns the number of registered streams.
    pub(super) fn stream_count(&self) -> usize {
        self.streams.stream_count()
    }

    /// Drops the callbacks without a response.
    pub(super) fn drop_kept(&self) {
        let kept = std::mem::take(&mut *self.kept.lock());
        drop(kept);
    }
}

impl RpcHandler for BulkHandler {
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        let text = String::from_utf8_lossy(&message[..message.len().min(40)]).into_owned();
        let mut words = text.split(':');
        match words.next() {
            Some("open") => {
                let mut number = || words.next().and_then(|word| word.parse::<usize>().ok());
                let (Some(count), Some(size)) = (number(), number()) else {
                    return callback.fail("open needs two numbers");
                };
                let chunks = (0..count).map(move |index| ManagedBuffer::from(pattern(index, size)));
                let options = StreamOptions::default().connection(client);
                let id = self.streams.register_stream(chunks, options);
                callback.reply(id.to_be_bytes().to_vec());
            }
            Some("panic") => std::panic::panic_any(INTENDED_FAILURE),
            Some("drop") => drop(callback),
            Some("hang") => self.kept.lock().push(callback),
            _ => callback.reply(message),
        }
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        _: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        Box::pin(async move { Ok(digest(&data.collect().await?)) })
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for BulkHandler {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        self.streams.get_chunk(client, stream_id, chunk_index)
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move { Ok(stream_id.parse().ok().map(|size| pattern(0, size).into())) })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        self.streams.connection_terminated(client);
    }
}

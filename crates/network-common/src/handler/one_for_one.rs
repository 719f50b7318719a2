//! [`OneForOneStreamManager`]: streams whose chunks are fetched once and in order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::StreamManager;
use crate::buffer::ManagedBuffer;
use crate::client::{SharedConnection, TransportClient};
use crate::error::BoxError;
use crate::log_limit::log_limited;
use crate::peer_text::{LogText, peer_name};

/// One item of a stream's iterator; `Ok(None)`: there is no chunk at this index.
type Chunk = Result<Option<ManagedBuffer>, BoxError>;
type Chunks = Box<dyn Iterator<Item = Chunk> + Send>;

/// Serves the chunks of registered streams, each once and in order.
///
/// Corresponds to Spark's `OneForOneStreamManager`. A stream is removed with its last chunk.
///
/// ```
/// use network_common::{ManagedBuffer, OneForOneStreamManager, StreamOptions};
///
/// let streams = OneForOneStreamManager::new();
/// let chunks = (0..4).map(|i| ManagedBuffer::file("/var/shuffle/0.data", i * 100..(i + 1) * 100));
/// let stream_id = streams.register_stream(chunks, StreamOptions::default());
/// assert!(stream_id >= 0);
/// assert_eq!(streams.stream_count(), 1);
/// ```
#[derive(Default)]
pub struct OneForOneStreamManager {
    table: Mutex<StreamTable>,
}

struct StreamTable {
    next_id: i64,
    streams: BTreeMap<i64, Arc<StreamState>>,
}

impl Default for StreamTable {
    /// Starts with a random id, so that a restarted server does not reuse the ids of its last run.
    fn default() -> Self {
        Self { next_id: fastrand::i64(0..i64::MAX), streams: BTreeMap::new() }
    }
}

struct StreamState {
    options: StreamOptions,
    /// The user's iterator runs under this lock and no other.
    remaining: Mutex<RemainingChunks>,
}

/// The chunks that were not fetched yet.
struct RemainingChunks {
    chunks: std::iter::Peekable<Chunks>,
    next_index: i32,
}

/// The options of a registered stream: which peers may read it, and how it is released.
///
/// ```
/// use network_common::{ManagedBuffer, OneForOneStreamManager, StreamOptions};
///
/// let streams = OneForOneStreamManager::new();
/// let options = StreamOptions::default().app_id("app-1").materialized_on_next();
/// streams.register_stream([ManagedBuffer::from("chunk")], options);
/// ```
#[derive(Debug, Clone, Default)]
pub struct StreamOptions {
    app_id: Option<String>,
    connection: Option<Arc<SharedConnection>>,
    materialized_on_next: bool,
}

impl StreamOptions {
    /// Restricts authenticated peers to those of this application.
    ///
    /// As in Spark, a peer of a connection without authentication may read the stream.
    #[must_use]
    pub fn app_id(mut self, app_id: impl Into<String>) -> Self {
        self.app_id = Some(app_id.into());
        self
    }

    /// Restricts the stream to this connection, and removes it when the connection ends.
    ///
    /// A stream that is registered after the end of the connection is released at once.
    #[must_use]
    pub fn connection(mut self, client: &TransportClient) -> Self {
        self.connection = Some(Arc::clone(client.shared()));
        self
    }

    fn is_of(&self, client: &TransportClient) -> bool {
        self.connection.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, client.shared()))
    }

    /// Declares that the iterator allocates each chunk when it is requested.
    ///
    /// When the connection ends, the remaining chunks are then not created just to be released.
    #[must_use]
    pub fn materialized_on_next(mut self) -> Self {
        self.materialized_on_next = true;
        self
    }
}

impl OneForOneStreamManager {
    /// Returns a manager without streams.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a stream of chunks that all exist; returns its id.
    pub fn register_stream<I>(&self, chunks: I, options: StreamOptions) -> i64
    where
        I: IntoIterator<Item = ManagedBuffer>,
        I::IntoIter: Send + 'static,
    {
        self.register_fallible_stream(chunks.into_iter().map(|chunk| Ok(Some(chunk))), options)
    }

    /// Registers a stream whose chunks may fail or not exist (`Ok(None)`); returns its id.
    ///
    /// The iterator runs while a chunk request is served, so it must not block.
    pub fn register_fallible_stream<I>(&self, chunks: I, options: StreamOptions) -> i64
    where
        I: IntoIterator<Item = Result<Option<ManagedBuffer>, BoxError>>,
        I::IntoIter: Send + 'static,
    {
        let chunks: Chunks = Box::new(chunks.into_iter());
        let remaining = Mutex::new(RemainingChunks { chunks: chunks.peekable(), next_index: 0 });
        let stream = Arc::new(StreamState { options, remaining });
        let mut table = self.table.lock();
        let id = table.next_id;
        table.next_id = id.wrapping_add(1) & i64::MAX;
        // Checked under the lock: a connection that ends later finds the stream in the table.
        let is_ended = stream.options.connection.as_ref().is_some_and(|shared| shared.is_closed());
        if !is_ended {
            table.streams.insert(id, Arc::clone(&stream));
        }
        drop(table);
        if is_ended {
            stream.release();
        }
        id
    }

    /// Returns the number of streams with chunks that were not fetched yet.
    #[must_use]
    pub fn stream_count(&self) -> usize {
        self.table.lock().streams.len()
    }

    /// Takes the chunk at `index`, which must be the next one of its stream.
    fn take_chunk(&self, client: &TransportClient, stream_id: i64, index: i32) -> Chunk {
        let Some(stream) = self.table.lock().streams.get(&stream_id).cloned() else {
            return Err(format!(
                "java.lang.IllegalStateException: Requested chunk not available since streamId {stream_id} is closed"
            )
            .into());
        };
        stream.authorize(client, stream_id)?;
        let mut remaining = stream.remaining.lock();
        let expected = remaining.next_index;
        if index != expected {
            return Err(format!(
                "java.lang.IllegalStateException: Received out-of-order chunk index {index} (expected {expected})"
            )
            .into());
        }
        let Some(chunk) = remaining.chunks.next() else {
            return Err(format!(
                "java.lang.IllegalStateException: Requested chunk index beyond end {index}"
            )
            .into());
        };
        remaining.next_index += 1;
        // `peek` creates the next chunk, so it is used only if `size_hint` is not decisive.
        let is_last = match remaining.chunks.size_hint() {
            (_, Some(0)) => true,
            (0, _) if !stream.options.materialized_on_next => remaining.chunks.peek().is_none(),
            _ => false,
        };
        if is_last {
            drop(self.table.lock().streams.remove(&stream_id));
        }
        chunk
    }

    /// Does the same as `take_chunk`, but fails if there is no chunk at the index.
    fn take_existing(
        &self,
        client: &TransportClient,
        id: i64,
        index: i32,
    ) -> Result<ManagedBuffer, BoxError> {
        self.take_chunk(client, id, index)?
            .ok_or_else(|| "java.lang.IllegalStateException: Chunk was not found".into())
    }
}

impl StreamState {
    /// Checks that the connection may read the stream.
    fn authorize(&self, client: &TransportClient, stream_id: i64) -> Result<(), BoxError> {
        if let (Some(id), Some(app_id)) = (client.client_id(), self.options.app_id.as_deref())
            && id != app_id
        {
            let id = peer_name(id);
            return Err(format!(
                    "java.lang.SecurityException: Client {id} not authorized to read stream {stream_id} (app {app_id})."
                )
                .into());
        }
        if self.options.connection.is_some() && !self.options.is_of(client) {
            return Err(format!(
                "java.lang.SecurityException: Stream {stream_id} belongs to another connection"
            )
            .into());
        }
        Ok(())
    }
}

impl StreamState {
    /// Releases the remaining chunks of a stream whose connection has ended.
    fn release(&self) {
        if self.options.materialized_on_next {
            return;
        }
        // Existing chunks are released by taking them. An error ends the loop, because the
        // iterator might return errors without end; the rest is dropped with the iterator.
        if let Some(error) = self.remaining.lock().chunks.by_ref().find_map(Result::err) {
            log_limited!(|suppressed| {
                tracing::warn!(
                    suppressed,
                    error = %LogText(error),
                    "cannot release a chunk of a stream whose connection ended"
                );
            });
        }
    }
}

impl StreamManager for OneForOneStreamManager {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move { self.take_existing(client, stream_id, chunk_index) })
    }

    /// Returns a chunk; the name is `<stream id>_<chunk index>`.
    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async move {
            let parts = stream_id
                .split_once('_')
                .and_then(|(id, index)| Some((id.parse().ok()?, index.parse().ok()?)));
            let Some((id, index)) = parts else {
                let stream_id = peer_name(stream_id);
                return Err(format!(
                    "java.lang.IllegalArgumentException: stream id '{stream_id}' is not of the form <stream>_<chunk>"
                )
                .into());
            };
            self.take_chunk(client, id, index)
        })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        let mut removed = Vec::new();
        self.table.lock().streams.retain(|_, stream| {
            let is_kept = !stream.options.is_of(client);
            if !is_kept {
                removed.push(Arc::clone(stream));
            }
            is_kept
        });
        removed.iter().for_each(|stream| stream.release());
    }
}

impl fmt::Debug for OneForOneStreamManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneForOneStreamManager").field("streams", &self.stream_count()).finish()
    }
}

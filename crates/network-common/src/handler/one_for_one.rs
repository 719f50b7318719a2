//! Streams whose chunks are fetched once and in order.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::StreamManager;
use crate::buffer::ManagedBuffer;
use crate::client::{ConnectionId, TransportClient};
use crate::error::BoxError;

/// One chunk as its source yields it; `Ok(None)`: there is none at this index.
type Chunk = Result<Option<ManagedBuffer>, BoxError>;
type Chunks = Box<dyn Iterator<Item = Chunk> + Send>;

/// Serves registered streams: each chunk once, in order; taking the last one forgets the stream
/// (transport 10).
///
/// ```
/// use network_common::{ManagedBuffer, OneForOneStreamManager, StreamOptions};
///
/// let streams = OneForOneStreamManager::new();
/// let chunks = (0..4).map(|i| ManagedBuffer::file("/var/shuffle/0.data", i * 100..(i + 1) * 100));
/// let stream_id = streams.register_stream(chunks, StreamOptions::default());
/// assert!(stream_id >= 0);
/// assert_eq!(streams.streams(), 1);
/// ```
#[derive(Default)]
pub struct OneForOneStreamManager {
    state: Mutex<StreamTable>,
}

struct StreamTable {
    next_id: i64,
    streams: HashMap<i64, Arc<StreamState>>,
}

impl Default for StreamTable {
    /// Ids start at random, so that those of a restarted server are not mistaken for its old ones.
    fn default() -> Self {
        Self { next_id: rand::random::<i64>() & i64::MAX, streams: HashMap::new() }
    }
}

struct StreamState {
    options: StreamOptions,
    /// The user's code runs under this lock, and under no other.
    rest: Mutex<RemainingChunks>,
}

/// What was not yet handed out.
struct RemainingChunks {
    chunks: std::iter::Peekable<Chunks>,
    next_index: i32,
}

/// Who may read a registered stream, and how long it lives.
#[derive(Debug, Clone, Default)]
pub struct StreamOptions {
    app_id: Option<String>,
    connection: Option<ConnectionId>,
    materialized_on_next: bool,
}

impl StreamOptions {
    /// Only a client that authenticated as this application may read it.
    pub fn app_id(mut self, app_id: impl Into<String>) -> Self {
        self.app_id = Some(app_id.into());
        self
    }

    /// Only this connection may read it, and it is forgotten when the connection ends.
    pub fn connection(mut self, client: &TransportClient) -> Self {
        self.connection = Some(client.id());
        self
    }

    /// Chunks are made when they are asked for: when the connection ends, those not handed out are
    /// not made just to be released.
    pub fn materialized_on_next(mut self) -> Self {
        self.materialized_on_next = true;
        self
    }
}

impl OneForOneStreamManager {
    /// No streams.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers chunks that cannot fail to be made; returns the stream's id.
    pub fn register_stream<I>(&self, chunks: I, options: StreamOptions) -> i64
    where
        I: IntoIterator<Item = ManagedBuffer>,
        I::IntoIter: Send + 'static,
    {
        self.register_fallible_stream(chunks.into_iter().map(|chunk| Ok(Some(chunk))), options)
    }

    /// Registers chunks of which each may be missing (`Ok(None)`) or fail; returns the stream's id.
    ///
    /// The iterator is advanced while a chunk request is served: it must not block.
    pub fn register_fallible_stream<I>(&self, chunks: I, options: StreamOptions) -> i64
    where
        I: IntoIterator<Item = Result<Option<ManagedBuffer>, BoxError>>,
        I::IntoIter: Send + 'static,
    {
        let chunks: Chunks = Box::new(chunks.into_iter());
        let mut state = self.state.lock();
        let id = state.next_id;
        state.next_id = id.wrapping_add(1) & i64::MAX;
        let rest = Mutex::new(RemainingChunks { chunks: chunks.peekable(), next_index: 0 });
        state.streams.insert(id, Arc::new(StreamState { options, rest }));
        id
    }

    /// How many streams have chunks left.
    pub fn stream_count(&self) -> usize {
        self.state.lock().streams.len()
    }

    fn take_chunk(&self, client: &TransportClient, stream_id: i64, index: i32) -> Chunk {
        let Some(stream) = self.state.lock().streams.get(&stream_id).cloned() else {
            return Err(format!(
                "java.lang.IllegalStateException: Requested chunk not available since streamId {stream_id} is closed"
            )
            .into());
        };
        stream.authorize(client, stream_id)?;
        let mut rest = stream.rest.lock();
        let expected = rest.next_index;
        if index != expected {
            return Err(format!(
                "java.lang.IllegalStateException: Received out-of-order chunk index {index} (expected {expected})"
            )
            .into());
        }
        let Some(chunk) = rest.chunks.next() else {
            return Err(format!(
                "java.lang.IllegalStateException: Requested chunk index beyond end {index}"
            )
            .into());
        };
        rest.next_index += 1;
        // Looking ahead makes the next chunk: only where the iterator does not say how much is
        // left.
        let last = match rest.chunks.size_hint() {
            (_, Some(0)) => true,
            (0, _) if !stream.options.materialized_on_next => rest.chunks.peek().is_none(),
            _ => false,
        };
        if last {
            drop(self.state.lock().streams.remove(&stream_id));
        }
        chunk
    }

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
    fn authorize(&self, client: &TransportClient, stream_id: i64) -> Result<(), BoxError> {
        if let (Some(id), Some(app_id)) = (client.client_id(), self.options.app_id.as_deref()) {
            if id != app_id {
                return Err(format!(
                    "java.lang.SecurityException: Client {id} not authorized to read stream {stream_id} (app {app_id})."
                )
                .into());
            }
        }
        if self.options.connection.is_some_and(|connection| connection != client.id()) {
            return Err(format!(
                "java.lang.SecurityException: stream {stream_id} belongs to another connection"
            )
            .into());
        }
        Ok(())
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

    /// `<stream>_<chunk>` is that chunk.
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
                return Err(format!(
                    "java.lang.IllegalArgumentException: stream id '{stream_id}' is not of the form <stream>_<chunk>"
                )
                .into());
            };
            self.take_chunk(client, id, index)
        })
    }

    fn connection_terminated(&self, client: &TransportClient) {
        let mut gone = Vec::new();
        self.state.lock().streams.retain(|_, stream| {
            let stays = stream.options.connection != Some(client.id());
            if !stays {
                gone.push(Arc::clone(stream));
            }
            stays
        });
        for stream in gone {
            if !stream.options.materialized_on_next {
                // Chunks that exist are released by being taken. One that fails ends that: what is
                // left goes with the iterator, which might fail for ever.
                if let Some(error) = stream.rest.lock().chunks.by_ref().find_map(Result::err) {
                    tracing::warn!(%error, "a chunk of a stream whose connection ended could not be released");
                }
            }
        }
    }
}

impl fmt::Debug for OneForOneStreamManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneForOneStreamManager").field("streams", &self.stream_count()).finish()
    }
}

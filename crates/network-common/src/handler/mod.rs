//! What users implement: where requests go, where chunks and streams come from, what runs on a new
//! connection.

mod one_for_one;
mod response_callback;

use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

pub use one_for_one::{OneForOneStreamManager, StreamOptions};
pub use response_callback::{MergedBlockMetaCallback, RpcResponseCallback};
pub(crate) use response_callback::{check_frame_len, cut_error};

use crate::buffer::ManagedBuffer;
use crate::client::TransportClient;
use crate::error::{BoxError, TransportError};
use crate::protocol::MergedBlockMetaRequest;
use crate::session::StreamBody;

/// Serves the requests of peers (transport 12). One handler serves all connections of a context.
///
/// `receive` and its siblings are called by the task that reads the connection, one request at a
/// time and in the order of arrival: they must not block or compute for long. Whatever takes time
/// is moved elsewhere together with the callback, which answers from anywhere. A panic fails the
/// request (the panic text stays here) and nothing else.
pub trait RpcHandler: Send + Sync + 'static {
    /// An RPC. A callback that is dropped unanswered fails the asker.
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback);

    /// A message that expects no answer. Ignored, with a warning, unless implemented.
    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        tracing::warn!(peer = %client.peer_addr(), bytes = message.len(), "one-way message ignored: no handler for it");
    }

    /// An RPC with data: `meta` is its header, `data` arrives while the future runs, on a task of
    /// its own.
    ///
    /// What the future returns is the answer. Data it leaves unread is skipped. If it fails before
    /// it has read all data, the connection is closed after the failure was sent, as Spark does; if
    /// later, the connection lives on (transport 9). Uploads of one connection arrive one after the
    /// other, but what follows the last byte of one may overlap the next.
    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let _ = (client, meta, data);
        Box::pin(async { Err("this handler does not accept uploads".into()) })
    }

    /// Where chunks and streams come from; nothing by default.
    fn stream_manager(&self) -> &dyn StreamManager {
        &NoStreams
    }

    /// A question for merged shuffle blocks; fails unless implemented.
    fn receive_merged_block_meta(
        &self,
        client: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        let _ = (client, request);
        callback.fail("this handler has no merged blocks");
    }

    /// A connection is ready, on either side. Called before anything of it is read.
    #[doc(alias = "channelActive")]
    fn on_connected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// A connection that was active has ended.
    #[doc(alias = "channelInactive")]
    fn on_disconnected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// A connection ends because of an error; [`on_disconnected`](Self::on_disconnected) follows.
    #[doc(alias = "exceptionCaught")]
    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        let _ = (error, client);
    }
}

/// The handler of contexts that only ask: every request of a peer fails.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct NoOpRpcHandler;

impl NoOpRpcHandler {
    /// A handler that serves nothing.
    pub fn new() -> Self {
        Self
    }
}

impl RpcHandler for NoOpRpcHandler {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.fail("java.lang.UnsupportedOperationException: Cannot handle messages");
    }
}

/// Where chunks and streams come from (transport 10).
///
/// It is asked in the order in which the requests of a connection arrived, for the next body only
/// when the earlier ones do not fill the write queue. The futures run on a task of their own per
/// connection and are dropped when that ends; disk work in them still belongs into
/// [`spawn_blocking`](tokio::task::spawn_blocking), but opening and reading files does not happen
/// here: return [`ManagedBuffer::file`].
pub trait StreamManager: Send + Sync {
    /// One chunk of a stream.
    ///
    /// An error becomes a `ChunkFetchFailure` with its text; the connection lives on.
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>>;

    /// A whole stream by name; `None`: there is no such stream.
    ///
    /// An error becomes a `StreamFailure` with its text; the connection lives on.
    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        let _ = (client, stream_id);
        Box::pin(async {
            Err("java.lang.UnsupportedOperationException: no streams by name here".into())
        })
    }

    /// The connection has ended: what was registered for it can go.
    fn connection_terminated(&self, client: &TransportClient) {
        let _ = client;
    }
}

struct NoStreams;

impl StreamManager for NoStreams {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        stream_id: i64,
        _: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move { Err(format!("stream {stream_id} is not registered").into()) })
    }
}

/// Runs once on every new outgoing connection, in order, before anybody gets its client
/// (authentication, say).
///
/// While bootstraps run, the connection is read only as long as a request is outstanding: what the
/// peer sends behind an answer waits, and passes through
/// [filters](TransportClient::install_filters) that follow from that answer.
pub trait TransportClientBootstrap: Send + Sync + 'static {
    /// The handler for this connection, called before its first byte is read: `handler` itself, or
    /// one that wraps it.
    fn wrap_handler(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Arc<dyn RpcHandler> {
        let _ = client;
        handler
    }

    /// An error closes the connection and fails its creation with kind
    /// [`Bootstrap`](crate::ErrorKind::Bootstrap).
    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// Runs once on every accepted connection, in order, before its first byte is read.
pub trait TransportServerBootstrap: Send + Sync + 'static {
    /// The handler for this connection: `handler` itself, or one that wraps it.
    ///
    /// # Errors
    /// Close the connection.
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError>;
}

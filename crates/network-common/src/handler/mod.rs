//! The traits that users implement: request handlers, stream managers and bootstraps.

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

/// Serves the requests of peers on all connections of a context (Spark's `RpcHandler`).
///
/// The task that reads a connection calls the methods, one request at a time and in the order of
/// arrival. They must not block or compute for long: move the work and the callback to another
/// task or thread, from which the callback may reply at any time. A panic fails the request and has
/// no other effect; its text is not sent to the peer.
///
/// ```
/// use bytes::Bytes;
/// use network_common::{RpcHandler, RpcResponseCallback, TransportClient};
///
/// struct Echo;
///
/// impl RpcHandler for Echo {
///     fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
///         tokio::spawn(async move { callback.reply(message) });
///     }
/// }
/// ```
pub trait RpcHandler: Send + Sync + 'static {
    /// Handles an RPC.
    ///
    /// Dropping the callback without a reply fails the request.
    fn receive(&self, client: &TransportClient, message: Bytes, callback: RpcResponseCallback);

    /// Handles a one-way message; by default, discards it with a warning.
    fn receive_one_way(&self, client: &TransportClient, message: Bytes) {
        tracing::warn!(
            peer = %client.peer_addr(),
            bytes = message.len(),
            "discarding a one-way message: the handler does not implement receive_one_way"
        );
    }

    /// Handles an upload: an RPC with the header `meta` and the body `data`.
    ///
    /// The future runs on a task of its own while `data` arrives; its result is the response. Data
    /// that it does not read is discarded. If it fails before it has read all data, the connection
    /// is closed after the failure was sent, as in `TransportRequestHandler.processStreamUpload`;
    /// if it fails later, the connection stays open. The uploads of one connection arrive in order,
    /// but the next one may start before the future of the last one has completed.
    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let _ = (client, meta, data);
        Box::pin(async { Err("the handler does not accept uploads".into()) })
    }

    /// Returns the source of chunks and streams; the default one has none.
    fn stream_manager(&self) -> &dyn StreamManager {
        &NoStreams
    }

    /// Handles a request for merged block meta; by default, fails it.
    fn receive_merged_block_meta(
        &self,
        client: &TransportClient,
        request: MergedBlockMetaRequest,
        callback: MergedBlockMetaCallback,
    ) {
        let _ = (client, request);
        callback.fail("the handler has no merged blocks");
    }

    /// Called when a connection is ready, on both sides, before its first byte is read.
    ///
    /// The peer may still be unauthenticated; see [`TransportClient`].
    #[doc(alias = "channelActive")]
    fn on_connected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// Called when a connection has ended after [`on_connected`](Self::on_connected).
    #[doc(alias = "channelInactive")]
    fn on_disconnected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// Called when an error ends a connection, before [`on_disconnected`](Self::on_disconnected).
    #[doc(alias = "exceptionCaught")]
    fn on_network_error(&self, error: &TransportError, client: &TransportClient) {
        let _ = (error, client);
    }
}

/// A handler that fails every request, for contexts that only send requests.
///
/// Corresponds to Spark's `NoOpRpcHandler`.
///
/// ```
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
///
/// let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
/// # let _ = context;
/// ```
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct NoOpRpcHandler;

impl NoOpRpcHandler {
    /// Returns the handler.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

impl RpcHandler for NoOpRpcHandler {
    fn receive(&self, _: &TransportClient, _: Bytes, callback: RpcResponseCallback) {
        callback.fail("java.lang.UnsupportedOperationException: Cannot handle messages");
    }
}

/// The source of chunks and streams (Spark's `StreamManager`).
///
/// It is called in the order in which the requests of a connection arrive, and only while the write
/// queue of the connection has capacity. The futures of one connection run on one task, and are
/// dropped when the connection ends. They should not open or read files, but return
/// [`ManagedBuffer::file`]; other disk work belongs into
/// [`spawn_blocking`](tokio::task::spawn_blocking).
///
/// ```
/// use futures::future::BoxFuture;
/// use network_common::{BoxError, ManagedBuffer, StreamManager, TransportClient};
///
/// struct OneFile;
///
/// impl StreamManager for OneFile {
///     fn get_chunk<'a>(
///         &'a self,
///         _: &'a TransportClient,
///         _: i64,
///         index: i32,
///     ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
///         let start = u64::from(index.unsigned_abs()) * 1000;
///         Box::pin(async move { Ok(ManagedBuffer::file("/var/shuffle/0.data", start..start + 1000)) })
///     }
/// }
/// ```
pub trait StreamManager: Send + Sync {
    /// Returns one chunk of a stream.
    ///
    /// The text of an error is sent to the peer as a `ChunkFetchFailure`; the connection stays
    /// open.
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: i64,
        chunk_index: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>>;

    /// Returns a whole stream by name; `None`: there is no such stream.
    ///
    /// The text of an error is sent to the peer as a `StreamFailure`; the connection stays open.
    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        let _ = (client, stream_id);
        Box::pin(async {
            Err("java.lang.UnsupportedOperationException: there are no streams with names".into())
        })
    }

    /// Called when a connection has ended, to release its streams.
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

/// Prepares an outgoing connection, for example authenticates it.
///
/// Corresponds to Spark's `TransportClientBootstrap`. The bootstraps of a factory run in order,
/// before callers get the client. While they run, the connection is read only while a request is
/// pending. So bytes behind a response are read after the bootstrap could install
/// [filters](TransportClient::install_filters) because of that response.
///
/// ```
/// use futures::future::BoxFuture;
/// use network_common::{BoxError, TransportClient, TransportClientBootstrap};
///
/// struct Greeting;
///
/// impl TransportClientBootstrap for Greeting {
///     fn do_bootstrap<'a>(
///         &'a self,
///         client: &'a TransportClient,
///     ) -> BoxFuture<'a, Result<(), BoxError>> {
///         Box::pin(async move { Ok(client.send("hello")?) })
///     }
/// }
/// ```
pub trait TransportClientBootstrap: Send + Sync + 'static {
    /// Returns the handler of this connection: `handler` itself or a wrapper of it.
    ///
    /// Called before the first byte of the connection is read.
    fn wrap_handler(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Arc<dyn RpcHandler> {
        let _ = client;
        handler
    }

    /// Prepares the connection.
    ///
    /// # Errors
    /// An error closes the connection; `create_client` fails with kind
    /// [`Bootstrap`](crate::ErrorKind::Bootstrap).
    fn do_bootstrap<'a>(
        &'a self,
        client: &'a TransportClient,
    ) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// Prepares an accepted connection before its first byte is read.
///
/// Corresponds to Spark's `TransportServerBootstrap`. The bootstraps of a server run in order.
///
/// ```
/// use std::sync::Arc;
///
/// use network_common::{BoxError, RpcHandler, TransportClient, TransportServerBootstrap};
///
/// struct OnlyLocal;
///
/// impl TransportServerBootstrap for OnlyLocal {
///     fn do_bootstrap(
///         &self,
///         client: &TransportClient,
///         handler: Arc<dyn RpcHandler>,
///     ) -> Result<Arc<dyn RpcHandler>, BoxError> {
///         if client.peer_addr().ip().is_loopback() { Ok(handler) } else { Err("not local".into()) }
///     }
/// }
/// ```
pub trait TransportServerBootstrap: Send + Sync + 'static {
    /// Returns the handler of this connection: `handler` itself or a wrapper of it.
    ///
    /// # Errors
    /// An error closes the connection.
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError>;
}

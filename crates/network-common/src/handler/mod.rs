//! The traits that users implement: request handlers, stream managers and bootstraps.

mod one_for_one;
mod refused_request;
mod response_callback;

use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::Arc;

pub use one_for_one::{OneForOneStreamManager, StreamOptions};
pub use refused_request::RefusedRequest;
pub(crate) use refused_request::is_refusal;
pub use response_callback::{MergedBlockMetaCallback, RpcResponseCallback};
pub(crate) use response_callback::{check_frame_len, cut_error};

use crate::buffer::ManagedBuffer;
use crate::client::TransportClient;
use crate::error::{BoxError, TransportError};
use crate::log_limit::log_limited;
use crate::protocol::MergedBlockMetaRequest;
use crate::session::StreamBody;

/// Serves the requests of peers on all connections of a context (Spark's `RpcHandler`).
///
/// The task that reads a connection calls the methods one at a time, in the order of arrival. A
/// method must not block or compute for long: move the work and the callback to another task or
/// thread, and reply from there at any time.
///
/// A panic in a method fails the request, if the method handles one, and the connection stays open.
/// The text of the panic is not sent to the peer.
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
        log_limited!(|suppressed| {
            tracing::warn!(
                suppressed,
                peer = %client.peer_addr(),
                bytes = message.len(),
                "discarding a one-way message: the handler does not implement receive_one_way"
            );
        });
    }

    /// Handles an upload: an RPC with the header `meta` and the body `data`.
    ///
    /// The future runs on a task of its own while `data` arrives, and its output is the response.
    /// Data that the future does not read is discarded. The uploads of one connection arrive in
    /// order, but one may start before the future of the previous one has completed.
    ///
    /// If the future fails before it has read all data, the failure is sent and the connection is
    /// closed, as in `TransportRequestHandler.processStreamUpload`. If it fails later, the
    /// connection stays open.
    fn receive_stream(
        &self,
        client: &TransportClient,
        meta: Bytes,
        data: StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        let _ = (client, meta, data);
        Box::pin(async { Err("the handler does not accept uploads".into()) })
    }

    /// Returns the source of chunks and streams; the default one fails every request.
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

    /// Called on both sides before the first message of a connection is read.
    ///
    /// The TLS handshake, if any, has completed; client bootstraps may still run. The peer may
    /// still be unauthenticated; see [`TransportClient`].
    #[doc(alias = "channelActive")]
    fn on_connected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// Called when a connection ends for which [`on_connected`](Self::on_connected) was called.
    #[doc(alias = "channelInactive")]
    fn on_disconnected(&self, client: &TransportClient) {
        let _ = client;
    }

    /// Called when a request of the peer was skipped, because it exceeds `maxRequestSize`.
    ///
    /// The peer gets a failure, except for a one-way message. By default, the connection stays
    /// open. A handler whose state depends on every message can [close](TransportClient::close) it.
    fn on_skipped_request(&self, client: &TransportClient) {
        let _ = client;
    }

    /// Called when a request of the peer was not received, because the
    /// [`ByteBudget`](crate::ByteBudget) does not allow it.
    ///
    /// By default, the request fails with a retryable error that names the setting; a one-way
    /// message is discarded. The connection stays open.
    fn on_refused_request(&self, client: &TransportClient, request: RefusedRequest) {
        let _ = (client, request);
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
/// One task per connection requests chunks and streams in the order of arrival, and only while the
/// write queue has capacity. It runs one future at a time, and drops the future when the connection
/// ends.
///
/// A future should return [`ManagedBuffer::file`] instead of opening or reading the file. Other
/// disk work belongs into [`spawn_blocking`](tokio::task::spawn_blocking).
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

    /// Returns a whole stream by name, or `None` if there is no such stream.
    ///
    /// The peer receives a `StreamFailure` for `None`, and one with the text of the error for an
    /// error. The connection stays open.
    fn open_stream<'a>(
        &'a self,
        client: &'a TransportClient,
        stream_id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        let _ = (client, stream_id);
        Box::pin(async {
            Err("java.lang.UnsupportedOperationException: streams are not served by name".into())
        })
    }

    /// Releases the streams of a connection that has ended.
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
/// before callers get the client.
///
/// While they run and have not installed [filters](TransportClient::install_filters), received
/// bytes are decoded only while a request is pending. A bootstrap that has received a response can
/// therefore install filters before the bytes after the response are decoded.
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
    /// Called before the first message is read and before any [`do_bootstrap`](Self::do_bootstrap).
    /// The handler of the first bootstrap is the outermost one.
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
/// Corresponds to Spark's `TransportServerBootstrap`. The bootstraps of a server run in order, and
/// the handler of the last one is the outermost one.
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

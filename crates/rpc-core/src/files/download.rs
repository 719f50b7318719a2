//! Downloads from the file servers of environments, over connections of their own (`rpc 10`).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use network_common::{
    ConnectionId, MemoryNetwork, NoOpRpcHandler, StreamBody, TransportClient,
    TransportClientFactory, TransportConf, TransportContext, TransportError,
};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, ReadBuf};

use crate::address::RpcAddress;
use crate::conf::RpcConf;
use crate::error::{ErrorKind, RpcError};
use crate::sync::Mutex;

/// The connections that downloads go over. A connection carries one download at a time, so that one
/// which nobody reads holds up no other, and one that is given up ends its transfer; in between it
/// is kept for the next.
pub(crate) struct DownloadPool {
    factory: TransportClientFactory,
    idle_per_peer: usize,
    connections: Mutex<IdleConnections>,
}

#[derive(Default)]
struct IdleConnections {
    busy: HashMap<ConnectionId, TransportClient>,
    idle: HashMap<RpcAddress, Vec<TransportClient>>,
    closed: bool,
}

impl DownloadPool {
    /// Secured as `messages`, the context of the connections for messages.
    pub(crate) fn new(
        conf: &RpcConf,
        network: Option<&MemoryNetwork>,
        messages: &TransportContext,
    ) -> Result<Arc<Self>, RpcError> {
        let conf = transport_conf(conf)?;
        let idle_per_peer = conf.connections_per_peer();
        let mut context = TransportContext::new(conf, NoOpRpcHandler::new())
            .close_idle_connections(true)
            .share_security_with(messages);
        if let Some(network) = network {
            context = context.memory_network(network);
        }
        let factory = context.create_client_factory();
        Ok(Arc::new(Self { factory, idle_per_peer, connections: Mutex::default() }))
    }

    pub(crate) async fn open(self: &Arc<Self>, uri: &str) -> Result<Download, RpcError> {
        let (address, stream_id) = parse(uri)?;
        match self.stream(&address, &stream_id).await {
            Ok((lease, body)) => Ok(Download { uri: uri.to_owned(), body, lease }),
            Err(error) => Err(self.failed(&format!("cannot download {uri}"), &address, error)),
        }
    }

    async fn stream(
        self: &Arc<Self>,
        address: &RpcAddress,
        stream_id: &str,
    ) -> Result<(ConnectionLease, StreamBody), TransportError> {
        // The peer may have closed an idle one just now, so only a new one has the last word.
        while let Some(client) = self.take_idle(address) {
            match self.lease(address, client).stream(stream_id).await {
                Err(error) if error.kind() == network_common::ErrorKind::Closed => {}
                outcome => return outcome,
            }
        }
        let client = self.factory.create_unmanaged_client((address.host(), address.port())).await?;
        self.lease(address, client).stream(stream_id).await
    }

    fn take_idle(&self, address: &RpcAddress) -> Option<TransportClient> {
        self.connections.lock().idle.get_mut(address)?.pop()
    }

    fn lease(self: &Arc<Self>, address: &RpcAddress, client: TransportClient) -> ConnectionLease {
        let mut connections = self.connections.lock();
        if connections.closed {
            client.close();
        }
        connections.busy.insert(client.id(), client.clone());
        ConnectionLease {
            downloads: Arc::clone(self),
            address: address.clone(),
            client,
            reusable: false,
        }
    }

    fn release(&self, address: &RpcAddress, client: &TransportClient, reusable: bool) {
        let mut connections = self.connections.lock();
        connections.busy.remove(&client.id());
        for idle in connections.idle.values_mut() {
            idle.retain(TransportClient::is_active);
        }
        connections.idle.retain(|_, idle| !idle.is_empty());
        if reusable && client.is_active() && !connections.closed {
            let idle = connections.idle.entry(address.clone()).or_default();
            if idle.len() < self.idle_per_peer {
                idle.push(client.clone());
            }
        }
    }

    /// Closes all connections; downloads under way fail.
    pub(crate) fn close(&self) {
        self.factory.close();
        let mut connections = self.connections.lock();
        connections.closed = true;
        connections.idle.clear();
        connections.busy.values().for_each(TransportClient::close);
    }

    fn failed(&self, what: &str, address: &RpcAddress, error: TransportError) -> RpcError {
        if self.connections.lock().closed {
            let text = format!("{what}: the environment has shut down");
            return RpcError::new(ErrorKind::Stopped, text).with_peer(address).with_source(error);
        }
        // To read a file again does no harm.
        let retryable = error.is_retryable();
        let text = format!("{what}: {error}");
        let error = RpcError::from_transport(error, address).with_text(text);
        if retryable { error.retryable() } else { error }
    }
}

/// A connection that is one download's alone.
struct ConnectionLease {
    downloads: Arc<DownloadPool>,
    address: RpcAddress,
    client: TransportClient,
    /// Nothing is on its way any more.
    reusable: bool,
}

impl ConnectionLease {
    async fn stream(mut self, stream_id: &str) -> Result<(Self, StreamBody), TransportError> {
        match self.client.stream(stream_id).await {
            Ok(body) => Ok((self, body)),
            Err(error) => {
                self.reusable = error.is_remote();
                Err(error)
            }
        }
    }
}

impl Drop for ConnectionLease {
    fn drop(&mut self) {
        self.downloads.release(&self.address, &self.client, self.reusable);
    }
}

/// A file as it arrives: a [`Stream`] of pieces and an [`AsyncRead`]. From
/// [`RpcEnv::open_channel`](crate::RpcEnv::open_channel).
///
/// It ends after exactly [`len`](Self::len) bytes, or with an error that names the URI; what was
/// delivered until then is valid. Nothing follows an error. Reading is cancel safe. Dropping it
/// early ends the transfer.
///
/// While nobody reads, about 1 MiB is held and the sender waits; after
/// `spark.files.io.connectionTimeout` of that the download fails.
#[must_use = "dropping it ends the download"]
pub struct Download {
    uri: String,
    body: StreamBody,
    lease: ConnectionLease,
}

impl Download {
    /// What is downloaded, as it was given.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Length of the whole file in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.body.len()
    }

    /// Whether the whole file has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Bytes that were not yet handed out.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.body.remaining()
    }

    /// The next piece, of any size but 0; `None` at the end. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Network`] if the connection is lost, also because the other side can read no
    /// more of the file; [`ErrorKind::Stopped`] if this environment shuts down.
    pub async fn next_piece(&mut self) -> Option<Result<Bytes, RpcError>> {
        let piece = self.body.next_piece().await?;
        Some(piece.map_err(|error| self.failed(error)))
    }

    fn failed(&self, error: TransportError) -> RpcError {
        let done = self.len() - self.remaining();
        let what =
            format!("the download of {} broke off after {done} of {} bytes", self.uri, self.len());
        self.lease.downloads.failed(&what, &self.lease.address, error).mark_as_result()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.lease.reusable = self.remaining() == 0;
    }
}

impl Stream for Download {
    type Item = Result<Bytes, RpcError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let piece = ready!(Pin::new(&mut this.body).poll_next(context));
        Poll::Ready(piece.map(|piece| piece.map_err(|error| this.failed(error))))
    }
}

impl AsyncRead for Download {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.body).poll_read(context, buffer));
        Poll::Ready(read.map_err(|error| {
            let kind = error.kind();
            error
                .downcast()
                .map_or_else(|other| other, |error| io::Error::new(kind, this.failed(error)))
        }))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("uri", &self.uri)
            .field("length", &self.len())
            .field("remaining", &self.remaining())
            .finish()
    }
}

/// Settings of the module "files"; where they are silent, those of "rpc" count (`rpc 10`).
fn transport_conf(conf: &RpcConf) -> Result<TransportConf, RpcError> {
    let inherited = conf.settings().filter_map(|(key, value)| {
        let own = format!("spark.files.io.{}", key.strip_prefix("spark.rpc.io.")?);
        conf.get(&own).is_none().then(|| (own, value.to_owned()))
    });
    let all =
        conf.settings().map(|(key, value)| (key.to_owned(), value.to_owned())).chain(inherited);
    TransportConf::from_settings("files", all).map_err(RpcError::config)
}

/// The address that `uri` names and the path there, decoded.
fn parse(uri: &str) -> Result<(RpcAddress, String), RpcError> {
    let bad = |why: &str| {
        RpcError::new(ErrorKind::InvalidAddress, format!("cannot download {uri}: {why}"))
    };
    let rest =
        uri.strip_prefix("spark://").ok_or_else(|| bad("it does not begin with spark://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.is_empty() || authority.starts_with(':') {
        return Err(bad("Host name must be defined."));
    }
    let address = match authority.parse::<RpcAddress>() {
        Ok(address) if address.port() > 0 => address,
        Err(error) if authority.contains(':') => {
            return Err(bad(&error.to_string()).with_source(error));
        }
        _ => return Err(bad("Port must be defined.")),
    };
    if path.is_empty() {
        return Err(bad("Path must be defined."));
    }
    if path.contains(['?', '#']) {
        return Err(bad("it has a query or a fragment, which files do not have"));
    }
    let path = percent_decode_str(path)
        .decode_utf8()
        .map_err(|error| bad("its path is not UTF-8").with_source(error))?;
    Ok((address, path.into_owned()))
}

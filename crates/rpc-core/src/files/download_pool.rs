//! [`DownloadPool`], which makes and keeps the connections of downloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use network_common::{
    ConnectionId, MemoryNetwork, NoOpRpcHandler, StreamBody, TransportClient,
    TransportClientFactory, TransportConf, TransportContext, TransportError,
};

use crate::address::RpcAddress;
use crate::conf::RpcConf;
use crate::error::{ErrorKind, RpcError};
use crate::sync::Mutex;

/// The connections of downloads.
///
/// A connection carries one download at a time, so a reader that is slow delays no other download,
/// and dropping a download ends its transfer. Idle connections are kept for later downloads.
pub(crate) struct DownloadPool {
    factory: TransportClientFactory,
    idle_per_peer: usize,
    connections: Mutex<IdleConnections>,
}

#[derive(Default)]
struct IdleConnections {
    busy: BTreeMap<ConnectionId, TransportClient>,
    idle: BTreeMap<RpcAddress, Vec<TransportClient>>,
    is_closed: bool,
}

impl DownloadPool {
    /// Makes a pool with the security of `messages`, the context of connections for messages.
    pub(crate) fn new(
        conf: &RpcConf,
        network: Option<&MemoryNetwork>,
        messages: &TransportContext,
    ) -> Result<Arc<Self>, RpcError> {
        let conf = transport_conf(conf)?;
        let idle_per_peer = conf.connections_per_peer();
        let mut context = TransportContext::new(conf, NoOpRpcHandler::new())
            .close_idle_connections(true)
            .share_security_with(messages)
            .with_byte_budget(&messages.byte_budget());
        if let Some(network) = network {
            context = context.memory_network(network);
        }
        let factory = context.create_client_factory();
        Ok(Arc::new(Self { factory, idle_per_peer, connections: Mutex::default() }))
    }

    /// Requests a stream over an idle connection or a new one.
    pub(super) async fn stream(
        self: &Arc<Self>,
        address: &RpcAddress,
        stream_id: &str,
    ) -> Result<(ConnectionLease, StreamBody), TransportError> {
        // The peer may just have closed an idle connection, so only a new one decides.
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
        if connections.is_closed {
            client.close();
        }
        connections.busy.insert(client.id(), client.clone());
        ConnectionLease {
            pool: Arc::clone(self),
            address: address.clone(),
            client,
            is_reusable: false,
        }
    }

    fn release(&self, address: &RpcAddress, client: &TransportClient, is_reusable: bool) {
        let mut connections = self.connections.lock();
        connections.busy.remove(&client.id());
        for idle in connections.idle.values_mut() {
            idle.retain(TransportClient::is_active);
        }
        connections.idle.retain(|_, idle| !idle.is_empty());
        if is_reusable && client.is_active() && !connections.is_closed {
            let idle = connections.idle.entry(address.clone()).or_default();
            if idle.len() < self.idle_per_peer {
                idle.push(client.clone());
            }
        }
    }

    /// Closes all connections; active downloads fail.
    pub(crate) fn close(&self) {
        self.factory.close();
        let mut connections = self.connections.lock();
        connections.is_closed = true;
        connections.idle.clear();
        connections.busy.values().for_each(TransportClient::close);
    }

    pub(super) fn download_error(
        &self,
        operation: String,
        address: &RpcAddress,
        error: TransportError,
    ) -> RpcError {
        use network_common::ErrorKind as Transport;
        if self.connections.lock().is_closed {
            let text = format!("{operation}: the environment has shut down");
            return RpcError::new(ErrorKind::Stopped, text).with_peer(address).with_source(error);
        }
        // Reading a file again is safe, also after a connection was lost.
        let is_retryable =
            matches!(error.kind(), Transport::Closed | Transport::Timeout | Transport::Io);
        let source = error.clone();
        let error =
            RpcError::from_transport(error, address).with_text(operation).with_source(source);
        if is_retryable { error.mark_retryable() } else { error }
    }
}

/// The exclusive use of a connection by one download.
pub(super) struct ConnectionLease {
    pub(super) pool: Arc<DownloadPool>,
    pub(super) address: RpcAddress,
    client: TransportClient,
    /// Is true if no more data of the download will arrive.
    pub(super) is_reusable: bool,
}

impl ConnectionLease {
    async fn stream(mut self, stream_id: &str) -> Result<(Self, StreamBody), TransportError> {
        match self.client.stream(stream_id).await {
            Ok(body) => Ok((self, body)),
            Err(error) => {
                self.is_reusable = error.is_remote();
                Err(error)
            }
        }
    }
}

impl Drop for ConnectionLease {
    fn drop(&mut self) {
        self.pool.release(&self.address, &self.client, self.is_reusable);
    }
}

/// Returns the settings `spark.files.io.*`, and `spark.rpc.io.*` for those that are not set.
///
/// `NettyRpcEnv.downloadClient` of Spark does the same.
fn transport_conf(conf: &RpcConf) -> Result<TransportConf, RpcError> {
    let inherited = conf.settings_of("").filter_map(|(key, value)| {
        let key = format!("spark.files.io.{}", key.strip_prefix("spark.rpc.io.")?);
        conf.get(&key).is_none().then(|| (key, value.to_owned()))
    });
    let all = conf
        .settings_of("")
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .chain(inherited);
    TransportConf::from_settings("files", all).map_err(RpcError::config)
}

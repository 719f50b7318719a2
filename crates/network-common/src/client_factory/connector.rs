//! Making one connection.

use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tracing::Instrument;

use crate::address::PeerAddress;
use crate::client::TransportClient;
use crate::connection::{ConnectionDriver, ConnectionResources, Handshaker};
use crate::error::{ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};
use crate::net::{IoStream, socket_options};

/// Resolving that takes longer is worth a warning.
const SLOW_LOOKUP: Duration = Duration::from_secs(2);

pub(super) struct Connector {
    resources: Arc<ConnectionResources>,
    /// An error: settings that ask for security cannot be met.
    security: Result<Option<Arc<dyn Handshaker>>, TransportError>,
    handler: Arc<dyn RpcHandler>,
    bootstraps: Vec<Arc<dyn TransportClientBootstrap>>,
}

impl Connector {
    pub(super) fn new(
        resources: Arc<ConnectionResources>,
        security: Result<Option<Arc<dyn Handshaker>>, TransportError>,
        handler: Arc<dyn RpcHandler>,
        bootstraps: Vec<Arc<dyn TransportClientBootstrap>>,
    ) -> Self {
        Self { resources, security, handler, bootstraps }
    }

    pub(super) fn connections_per_peer(&self) -> usize {
        self.resources.conf.connections_per_peer()
    }

    pub(super) fn retry_wait(&self) -> Duration {
        self.resources.conf.retry_wait()
    }

    pub(super) async fn connect(
        &self,
        address: &PeerAddress,
    ) -> Result<TransportClient, TransportError> {
        let result = self.try_connect(address).await;
        if let Err(error) = &result {
            self.resources.metrics.count_failure(error);
        }
        result
    }

    async fn try_connect(&self, address: &PeerAddress) -> Result<TransportClient, TransportError> {
        let failed = |error: io::Error| {
            TransportError::new(
                ErrorKind::Connect,
                format!("Failed to connect to {address}: {error}"),
            )
            .with_peer(address)
            .with_source(error)
        };
        let security = self.security.as_ref().map_err(Clone::clone)?;
        let stream = match self.resources.conf.connection_creation_timeout() {
            None => self.dial(address).await.map_err(failed)?,
            Some(limit) => tokio::time::timeout(limit, self.dial(address))
                .await
                .map_err(|elapsed| {
                    let setting = self.resources.conf.setting_name("io.connectionCreationTimeout");
                    let text = format!(
                        "Connecting to {address} timed out ({} ms). This timeout is controlled by {setting}",
                        limit.as_millis()
                    );
                    TransportError::new(ErrorKind::ConnectTimeout, text)
                        .with_peer(address)
                        .with_source(elapsed)
                })?
                .map_err(failed)?,
        };
        let mut connection =
            ConnectionDriver::new(stream, Arc::clone(&self.handler), Arc::clone(&self.resources))
                .map_err(failed)?;
        if let Some(security) = security
            && let Err(error) = connection.handshake(&**security, address).await
        {
            connection.abort_handshake(&error).await;
            return Err(error);
        }
        let client = TransportClient::outgoing(Arc::clone(connection.shared()));
        // The first bootstrap's handler is the outermost.
        for bootstrap in self.bootstraps.iter().rev() {
            let handler =
                bootstrap.wrap_handler(connection.client(), Arc::clone(connection.handler()));
            connection.set_handler(handler);
        }
        client.shared().set_bootstrapping(!self.bootstraps.is_empty());
        let span = tracing::debug_span!("connection", peer = %address, side = "client");
        tokio::spawn(connection.run().instrument(span));
        for bootstrap in &self.bootstraps {
            let bootstrapped = AssertUnwindSafe(async { bootstrap.do_bootstrap(&client).await });
            let bootstrapped = bootstrapped.catch_unwind().await;
            if let Err(error) = bootstrapped.unwrap_or_else(|_| Err("it panicked".into())) {
                client.close();
                let text = format!("bootstrap of the connection to {address} failed: {error}");
                return Err(TransportError::new(ErrorKind::Bootstrap, text)
                    .with_peer(address)
                    .with_source(error));
            }
        }
        client.shared().set_bootstrapping(false);
        tracing::debug!(peer = %address, "connected");
        Ok(client)
    }

    /// Tries the resolved addresses in turn.
    async fn dial(&self, address: &PeerAddress) -> io::Result<IoStream> {
        if let Some(network) = &self.resources.network {
            return network
                .connect(address.unbracketed_host(), address.port())
                .map(IoStream::Memory);
        }
        let begun = Instant::now();
        let addresses = lookup_host((address.unbracketed_host(), address.port())).await?;
        if begun.elapsed() > SLOW_LOOKUP {
            tracing::warn!(peer = %address, took = ?begun.elapsed(), "resolving a peer's name is slow");
        }
        let mut failure =
            io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address");
        for address in addresses {
            match self.dial_one(address).await {
                Ok(stream) => return Ok(IoStream::Tcp(stream)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn dial_one(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let conf = &self.resources.conf;
        socket_options::configure_new(&socket, conf)?;
        let stream = socket.connect(address).await?;
        socket_options::configure_connected(&stream, conf, true)?;
        Ok(stream)
    }
}

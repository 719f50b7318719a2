//! [`Connector`]: opens one connection and runs its bootstraps.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tracing::Instrument;

use crate::address::PeerAddress;
use crate::client::TransportClient;
use crate::connection::{ConnectionDriver, ConnectionResources, Handshaker};
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportClientBootstrap};
use crate::net::dial;

/// Opens connections for one client factory.
pub(super) struct Connector {
    resources: Arc<ConnectionResources>,
    /// The error if the settings of TLS cannot be used.
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

    /// Opens a connection; counts a failure.
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
        let connect_error = |error: io::Error| {
            TransportError::new(ErrorKind::Connect, format!("Failed to connect to {address}"))
                .with_peer(address)
                .with_source(error)
        };
        let ConnectionResources { conf, network, .. } = &*self.resources;
        let security = self.security.as_ref().map_err(Clone::clone)?;
        let dialled = dial(address, conf, network.as_ref());
        let stream = match conf.connection_creation_timeout() {
            None => dialled.await,
            Some(timeout) => tokio::time::timeout(timeout, dialled).await.map_err(|elapsed| {
                let setting = conf.setting_name("io.connectionCreationTimeout");
                let millis = timeout.as_millis();
                let message = format!(
                    "Connecting to {address} timed out ({millis} ms). This timeout is controlled by \
                     {setting}"
                );
                TransportError::new(ErrorKind::ConnectTimeout, message)
                    .with_peer(address)
                    .with_source(elapsed)
            })?,
        };
        let mut connection = ConnectionDriver::new(
            stream.map_err(connect_error)?,
            false,
            Arc::clone(&self.handler),
            Arc::clone(&self.resources),
        )
        .map_err(connect_error)?;
        if let Some(security) = security
            && let Err(error) = connection.handshake(&**security, address).await
        {
            connection.abort_handshake(&error).await;
            return Err(match error.kind() {
                // No request was sent before the handshake.
                ErrorKind::Io | ErrorKind::Closed => error.retryable(),
                _ => error,
            });
        }
        let client = TransportClient::outgoing(Arc::clone(connection.shared()));
        // In reverse, so that the handler of the first bootstrap is the outermost.
        for bootstrap in self.bootstraps.iter().rev() {
            let handler =
                bootstrap.wrap_handler(connection.client(), Arc::clone(connection.handler()));
            connection.set_handler(handler);
        }
        client.shared().set_bootstrapping(!self.bootstraps.is_empty());
        let span = tracing::debug_span!("connection", peer = %address, side = "client");
        tokio::spawn(connection.run().instrument(span));
        for bootstrap in &self.bootstraps {
            let do_bootstrap = AssertUnwindSafe(async { bootstrap.do_bootstrap(&client).await });
            let result = do_bootstrap.catch_unwind().await;
            if let Err(error) = result.unwrap_or_else(|_| Err("the bootstrap panicked".into())) {
                client.close();
                return Err(bootstrap_error(address, error));
            }
        }
        client.shared().set_bootstrapping(false);
        tracing::debug!(peer = %address, "opened a connection");
        Ok(client)
    }
}

/// Returns the error of a failed bootstrap.
///
/// If the connection was cut or timed out, another attempt may succeed. No request was sent.
fn bootstrap_error(address: &PeerAddress, error: BoxError) -> TransportError {
    let cause = error.downcast_ref::<TransportError>().map(TransportError::kind);
    let is_interrupted =
        matches!(cause, Some(ErrorKind::Closed | ErrorKind::Io | ErrorKind::Timeout));
    let outcome = if is_interrupted { "was interrupted" } else { "failed" };
    let message = format!("a bootstrap of the connection to {address} {outcome}");
    let failure = TransportError::new(ErrorKind::Bootstrap, message).with_peer(address);
    let failure = failure.with_source(error);
    if is_interrupted { failure.retryable() } else { failure }
}

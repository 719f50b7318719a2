//! TLS for all connections of a context, from the first byte on (Spark's `SSLFactory`).
//!
//! `TransportContext` creates a [`LazyTlsContext`] from the settings in
//! [`TlsConf`](crate::TlsConf) and passes its handshakers to servers and client factories. rustls
//! does the work without a socket: its handshake produces two byte filters between socket and
//! frames. The cipher of an authentication is between them and the socket, as in Spark.
//!
//! Sessions are not resumed, so the current trust store verifies every new connection. Resumption
//! would save little, because connections are long-lived.

mod config;
mod error;
mod handshake;
mod jks;
mod key_store;
mod reload;
mod verifier;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::RwLock;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};
use tokio::sync::Semaphore;

use self::config::Configs;
use self::error::config_error;
use self::handshake::TlsHandshake;
use self::reload::FileWatcher;
use crate::address::PeerAddress;
use crate::blocking::run_blocking;
use crate::conf::TransportConf;
use crate::connection::{Handshake, Handshaker};
use crate::error::{BoxError, ErrorKind, TransportError};

/// A TLS context that reads its files on first use; several contexts can share it.
pub(crate) struct LazyTlsContext {
    conf: Arc<TransportConf>,
    loaded: OnceLock<Result<Arc<TlsContext>, TransportError>>,
}

impl LazyTlsContext {
    pub(crate) fn new(conf: Arc<TransportConf>) -> Self {
        Self { conf, loaded: OnceLock::new() }
    }

    /// Returns the TLS context, or `None` if TLS is not enabled.
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config) if a file or setting cannot be used.
    pub(crate) fn get(&self) -> Result<Option<Arc<TlsContext>>, TransportError> {
        if !self.conf.tls().enabled() {
            return Ok(None);
        }
        self.loaded.get_or_init(|| TlsContext::load(&self.conf).map(Arc::new)).clone().map(Some)
    }
}

/// The certificates, keys and limits for new connections of one context.
pub(crate) struct TlsContext {
    conf: Arc<TransportConf>,
    current: RwLock<Configs>,
    /// `None` if changed files are not reloaded.
    watcher: Option<FileWatcher>,
    /// One permit for each handshake that the servers of the context may run at a time.
    handshake_permits: Arc<Semaphore>,
}

impl TlsContext {
    /// Reads the files that the settings name; blocks.
    pub(crate) fn load(conf: &Arc<TransportConf>) -> Result<Self, TransportError> {
        let tls = conf.tls();
        let watcher = tls.trust_store_reloading_enabled().then(|| FileWatcher::new(tls));
        Ok(Self {
            current: RwLock::new(Configs::load(tls)?),
            watcher,
            handshake_permits: Arc::new(Semaphore::new(tls.max_handshakes())),
            conf: Arc::clone(conf),
        })
    }

    /// Returns the handshaker of accepted connections.
    pub(crate) fn server_side(self: Arc<Self>) -> Result<Arc<dyn Handshaker>, TransportError> {
        if self.current.read().server.is_none() {
            // The first sentence is the text of Spark's `SSLFactory`.
            return Err(config_error(
                "RPC SSL encryption enabled but keys not found! A server needs \
                 spark.ssl.rpc.keyStore, or spark.ssl.rpc.certChain and spark.ssl.rpc.privateKey",
            ));
        }
        Ok(Arc::new(TlsAcceptor(self)))
    }

    /// Returns the handshaker of connections that this process opens.
    pub(crate) fn client_side(self: Arc<Self>) -> Result<Arc<dyn Handshaker>, TransportError> {
        if self.current.read().client.is_none() {
            return Err(config_error(
                "TLS is enabled, but no certificate is trusted: a client needs \
                 spark.ssl.rpc.trustStore or spark.ssl.rpc.certChain",
            ));
        }
        Ok(Arc::new(TlsConnector(self)))
    }

    /// Reloads the files if they have changed; keeps the old ones if the new ones are invalid.
    async fn reload_if_changed(&self) {
        let Some(permit) = self.watcher.as_ref().and_then(FileWatcher::try_reload) else { return };
        let conf = Arc::clone(&self.conf);
        // Key stores derive their keys slowly on purpose, so a blocking thread opens them.
        let loaded = run_blocking(move || {
            let changed = permit.changed(conf.tls());
            Ok(changed.map(|stamps| (Configs::load(conf.tls()), stamps, permit)))
        });
        match loaded.await {
            Ok(Some((Ok(configs), stamps, permit))) => {
                *self.current.write() = configs;
                permit.commit(stamps);
                tracing::info!("reloaded the changed files of key and trust store for TLS");
            }
            Ok(Some((Err(error), ..))) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a changed key or trust store for TLS is invalid: the old one stays in use"
                );
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// Returns the timeout of a handshake and the name of its setting.
    fn handshake_timeout(&self) -> (Duration, &'static str) {
        (self.conf.tls().handshake_timeout(), "spark.ssl.rpc.handshakeTimeout")
    }
}

struct TlsAcceptor(Arc<TlsContext>);
struct TlsConnector(Arc<TlsContext>);

impl Handshaker for TlsAcceptor {
    fn start<'a>(
        &'a self,
        peer: &'a PeerAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Handshake>, TransportError>> {
        Box::pin(async move {
            let failed = |error| handshake_error(peer, error);
            let permit = Arc::clone(&self.0.handshake_permits)
                .acquire_owned()
                .await
                .map_err(|error| failed(error.into()))?;
            self.0.reload_if_changed().await;
            let config = self.0.current.read().server.clone();
            let config =
                config.ok_or_else(|| failed("the reloaded files contain no key".into()))?;
            let connection = ServerConnection::new(config).map_err(|error| failed(error.into()))?;
            Ok(Box::new(TlsHandshake::new(connection.into(), Some(permit))) as _)
        })
    }

    fn timeout(&self) -> (Duration, &'static str) {
        self.0.handshake_timeout()
    }
}

impl Handshaker for TlsConnector {
    fn start<'a>(
        &'a self,
        peer: &'a PeerAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Handshake>, TransportError>> {
        Box::pin(async move {
            let failed = |error| handshake_error(peer, error);
            self.0.reload_if_changed().await;
            let config = self.0.current.read().client.clone();
            let config =
                config.ok_or_else(|| failed("the reloaded files contain no certificate".into()))?;
            let name = ServerName::try_from(peer.certificate_name().to_owned());
            let name = name.map_err(|error| failed(error.into()))?;
            let connection =
                ClientConnection::new(config, name).map_err(|error| failed(error.into()))?;
            Ok(Box::new(TlsHandshake::new(connection.into(), None)) as _)
        })
    }

    fn timeout(&self) -> (Duration, &'static str) {
        self.0.handshake_timeout()
    }
}

fn handshake_error(peer: &PeerAddress, error: BoxError) -> TransportError {
    let text = format!("the TLS handshake with {peer} cannot start");
    TransportError::new(ErrorKind::Tls, text).with_peer(peer).with_source(error)
}

//! TLS under all connections of a context, from their first byte on (auth 6). Settings:
//! [`TlsConf`](crate::TlsConf).
//!
//! rustls does the work, without a socket: what it agrees on in a handshake is installed as filters
//! between socket and frames, under those of an authentication, if there is one.
//!
//! Sessions are not resumed: connections live long, and so every one of them is checked against the
//! trust store of its time.

mod config;
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
use self::handshake::TlsHandshake;
use self::reload::FileWatcher;
use crate::address::PeerAddress;
use crate::conf::TransportConf;
use crate::connection::{Handshake, Handshaker};
use crate::error::{BoxError, ErrorKind, TransportError};

/// Reads the files when they are asked for first; contexts may share it.
pub(crate) struct LazyTlsContext {
    conf: Arc<TransportConf>,
    loaded: OnceLock<Result<Arc<TlsContext>, TransportError>>,
}

impl LazyTlsContext {
    pub(crate) fn new(conf: Arc<TransportConf>) -> Self {
        Self { conf, loaded: OnceLock::new() }
    }

    /// `None`: TLS is not enabled.
    pub(crate) fn get(&self) -> Result<Option<Arc<TlsContext>>, TransportError> {
        if !self.conf.tls().enabled() {
            return Ok(None);
        }
        self.loaded.get_or_init(|| TlsContext::load(&self.conf).map(Arc::new)).clone().map(Some)
    }
}

/// What new connections of one context are secured with.
pub(crate) struct TlsContext {
    conf: Arc<TransportConf>,
    current: RwLock<Configs>,
    watch: Option<FileWatcher>,
    /// Accepted connections that may be in their handshake at once.
    handshake_permits: Arc<Semaphore>,
}

impl TlsContext {
    /// Reads what the settings name.
    pub(crate) fn load(conf: &Arc<TransportConf>) -> Result<Self, TransportError> {
        let tls = conf.tls();
        let watch = tls.trust_store_reloading_enabled().then(|| FileWatcher::new(tls));
        Ok(Self {
            current: RwLock::new(Configs::load(tls)?),
            watch,
            handshake_permits: Arc::new(Semaphore::new(tls.max_handshakes())),
            conf: Arc::clone(conf),
        })
    }

    pub(crate) fn server_side(self: Arc<Self>) -> Result<Arc<dyn Handshaker>, TransportError> {
        if self.current.read().server.is_none() {
            return Err(config_error(
                "RPC SSL encryption enabled but keys not found! A server needs spark.ssl.rpc.keyStore, or \
                 spark.ssl.rpc.certChain and spark.ssl.rpc.privateKey",
            ));
        }
        Ok(Arc::new(TlsAcceptor(self)))
    }

    pub(crate) fn client_side(self: Arc<Self>) -> Result<Arc<dyn Handshaker>, TransportError> {
        if self.current.read().client.is_none() {
            return Err(config_error(
                "TLS is enabled but nobody is trusted: opening connections needs spark.ssl.rpc.trustStore or \
                 spark.ssl.rpc.certChain",
            ));
        }
        Ok(Arc::new(TlsConnector(self)))
    }

    /// Takes up files that have changed. Those that cannot be used leave everything as it was.
    async fn refresh(&self) {
        let Some(turn) = self.watch.as_ref().and_then(FileWatcher::try_reload) else { return };
        let conf = Arc::clone(&self.conf);
        // Opening a key store takes a while on purpose.
        let loaded = tokio::task::spawn_blocking(move || {
            let stamps = turn.changed(conf.tls())?;
            Some((Configs::load(conf.tls()), stamps, turn))
        });
        match loaded.await {
            Ok(Some((Ok(configs), stamps, turn))) => {
                *self.current.write() = configs;
                turn.commit(stamps);
                tracing::info!("TLS: changed key or trust store taken up");
            }
            Ok(Some((Err(error), ..))) => {
                tracing::warn!(%error, "TLS: a changed key or trust store cannot be used, the old one stays");
            }
            Ok(None) | Err(_) => {}
        }
    }

    fn limit(&self) -> (Duration, &'static str) {
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
            let turn = Arc::clone(&self.0.handshake_permits)
                .acquire_owned()
                .await
                .map_err(|error| failed(error.into()))?;
            self.0.refresh().await;
            let config =
                self.0.current.read().server.clone().ok_or_else(|| failed("no key".into()))?;
            let connection = ServerConnection::new(config).map_err(|error| failed(error.into()))?;
            Ok(Box::new(TlsHandshake::new(connection.into(), Some(turn))) as _)
        })
    }

    fn timeout(&self) -> (Duration, &'static str) {
        self.0.limit()
    }
}

impl Handshaker for TlsConnector {
    fn start<'a>(
        &'a self,
        peer: &'a PeerAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Handshake>, TransportError>> {
        Box::pin(async move {
            let failed = |error| handshake_error(peer, error);
            self.0.refresh().await;
            let config =
                self.0.current.read().client.clone().ok_or_else(|| failed("no trust".into()))?;
            let name = ServerName::try_from(peer.unbracketed_host().to_owned());
            let name = name.map_err(|error| failed(error.into()))?;
            let connection =
                ClientConnection::new(config, name).map_err(|error| failed(error.into()))?;
            Ok(Box::new(TlsHandshake::new(connection.into(), None)) as _)
        })
    }

    fn timeout(&self) -> (Duration, &'static str) {
        self.0.limit()
    }
}

fn handshake_error(peer: &PeerAddress, error: BoxError) -> TransportError {
    TransportError::new(
        ErrorKind::Tls,
        format!("the TLS handshake with {peer} cannot begin: {error}"),
    )
    .with_peer(peer)
    .with_source(error)
}

fn config_error(text: impl Into<String>) -> TransportError {
    TransportError::new(ErrorKind::Config, text)
}

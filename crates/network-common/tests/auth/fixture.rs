//! A server and a client that share a secret, in each authentication mode of this build.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use network_common::auth::{Secret, SecretStore};
use network_common::{
    ManagedBuffer, NoOpRpcHandler, TransportClient, TransportClientFactory, TransportContext,
    TransportError, TransportServer,
};

use crate::support::*;

pub type Settings = &'static [(&'static str, &'static str)];

/// One way to authenticate and encrypt, by its settings.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    pub name: &'static str,
    pub settings: Settings,
    pub encrypts: bool,
}

const fn mode(name: &'static str, encrypts: bool, settings: Settings) -> Mode {
    Mode { name, settings, encrypts }
}

pub const SASL: Mode = mode("sasl", false, &[]);
pub const CTR_1: Mode = mode("ctr, version 1", true, &[("spark.network.crypto.enabled", "true")]);
pub const CTR_2: Mode = mode(
    "ctr, version 2",
    true,
    &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.authEngineVersion", "2")],
);
pub const GCM_1: Mode = mode(
    "gcm, version 1",
    true,
    &[
        ("spark.network.crypto.enabled", "true"),
        ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
    ],
);
pub const GCM_2: Mode = mode(
    "gcm, version 2",
    true,
    &[
        ("spark.network.crypto.enabled", "true"),
        ("spark.network.crypto.authEngineVersion", "2"),
        ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
    ],
);
#[cfg(feature = "legacy-auth")]
pub const SASL_ENCRYPTED: Mode = mode(
    "sasl, encrypted",
    true,
    &[
        ("spark.authenticate.enableSaslEncryption", "true"),
        ("spark.network.sasl.serverAlwaysEncrypt", "true"),
        ("spark.network.sasl.maxEncryptedBlockSize", "1k"),
    ],
);
#[cfg(feature = "legacy-auth")]
pub const LEGACY: Mode = mode(
    "engine before 3.2",
    true,
    &[("spark.network.crypto.enabled", "true"), ("spark.network.crypto.legacyEngine", "true")],
);

pub const MODES: &[Mode] = &[
    SASL,
    CTR_1,
    CTR_2,
    GCM_1,
    GCM_2,
    #[cfg(feature = "legacy-auth")]
    SASL_ENCRYPTED,
    #[cfg(feature = "legacy-auth")]
    LEGACY,
];

pub const APP: &str = "app-1";
pub const SECRET: &str = "5e883f8988a0b0e1c5d3d6ab1b0d0c1d2f3a4b5c6d7e8f90a1b2c3d4e5f60718";

pub fn secrets(app: &str, secret: &str) -> Arc<SecretStore> {
    let secrets = SecretStore::new();
    secrets.register_app(app, Secret::new(secret));
    Arc::new(secrets)
}

/// A server whose handler counts requests, and echoes RPCs.
pub struct Server {
    pub context: TransportContext,
    pub server: TransportServer,
    pub secrets: Arc<SecretStore>,
    pub served: Arc<AtomicUsize>,
}

impl Server {
    pub async fn new(settings: Settings) -> Self {
        Self::with(settings, Handler::new()).await
    }

    /// Uses the chunks, streams and uploads of `handler`.
    pub async fn with(settings: Settings, handler: Handler) -> Self {
        let served = Arc::new(AtomicUsize::new(0));
        let count = |served: &Arc<AtomicUsize>| {
            let served = Arc::clone(served);
            move || served.fetch_add(1, Ordering::SeqCst)
        };
        let (rpc, one_way) = (count(&served), count(&served));
        let handler = handler
            .on_rpc(move |_, body, callback| {
                rpc();
                if body.starts_with(b"fail:") {
                    callback.fail(String::from_utf8_lossy(&body[5..]));
                } else {
                    callback.reply(body);
                }
            })
            .on_one_way(move |_, _| {
                one_way();
            });
        let secrets = secrets(APP, SECRET);
        let context =
            TransportContext::new(conf(settings), handler).with_auth(APP, secrets.clone()).unwrap();
        let server = serve(&context).await;
        Self { context, server, secrets, served }
    }

    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// Waits until no connection is open.
    pub async fn wait_until_empty(&self) {
        until(|| self.context.metrics().server().snapshot().connections == 0).await;
    }
}

/// Returns a handler that also counts requests for chunks, streams, uploads and merged blocks.
pub fn counting_handler(asked: &Arc<AtomicUsize>) -> Handler {
    let count = |asked: &Arc<AtomicUsize>| {
        let asked = Arc::clone(asked);
        move || {
            asked.fetch_add(1, Ordering::SeqCst);
        }
    };
    let (chunk, stream, upload, meta) = (count(asked), count(asked), count(asked), count(asked));
    Handler::new()
        .on_chunk(move |_, _| {
            chunk();
            Ok(ManagedBuffer::from("chunk"))
        })
        .on_stream(move |_| {
            stream();
            Ok(Some(ManagedBuffer::from("stream")))
        })
        .on_upload(move |_, data| {
            upload();
            async move { Ok(data.collect().await?) }
        })
        .on_meta(move |_, _, callback| {
            meta();
            callback.fail("none");
        })
}

/// A client with its own context.
pub struct Client {
    pub context: TransportContext,
    pub factory: TransportClientFactory,
}

impl Client {
    pub fn new(settings: Settings) -> Self {
        Self::with(settings, APP, SECRET, None)
    }

    pub fn with(settings: Settings, app: &str, secret: &str, handler: Option<Handler>) -> Self {
        let context = match handler {
            Some(handler) => TransportContext::new(conf(settings), handler),
            None => TransportContext::new(conf(settings), NoOpRpcHandler::new()),
        };
        let context = context.with_auth(app, secrets(app, secret)).unwrap();
        let factory = context.create_client_factory();
        Self { context, factory }
    }

    pub async fn connect(
        &self,
        address: std::net::SocketAddr,
    ) -> Result<TransportClient, TransportError> {
        within(self.factory.create_unmanaged_client(address)).await
    }
}

pub async fn assert_echoes(client: &TransportClient) {
    assert_eq!(within(client.send_rpc("still there?")).await.unwrap(), "still there?");
}

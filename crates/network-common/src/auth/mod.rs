//! Authentication and encryption of connections, byte-compatible with Spark 2.4 to 4.x.
//!
//! [`TransportContext::with_auth`](crate::TransportContext::with_auth) uses this module: it adds
//! the handshake to every new connection, and the filters that encrypt the connection afterwards.
//! Both peers prove that they know the secret of the application. The settings choose the protocol
//! (see [`TransportConf`](crate::TransportConf)).
//!
//! The cargo feature `auth` enables this module. It is off by default because its ciphers need a C
//! compiler; a build without it rejects settings that enable authentication. The feature
//! `legacy-auth` adds the weak protocols that only old peers need.
//!
//! ```
//! use std::sync::Arc;
//! use network_common::auth::{Secret, SecretStore};
//! use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), network_common::TransportError> {
//! let conf = TransportConf::from_settings("shuffle", [
//!     ("spark.authenticate", "true"),
//!     ("spark.network.crypto.enabled", "true"),
//!     ("spark.network.crypto.authEngineVersion", "2"),
//!     ("spark.network.crypto.cipher", "AES/GCM/NoPadding"),
//! ])?;
//! let secrets = Arc::new(SecretStore::new());
//! secrets.register_app("app-1", Secret::new("s3cret"));
//!
//! let context = TransportContext::new(conf, NoOpRpcHandler::new());
//! let context = context.with_auth("app-1", secrets.clone())?;
//! let server = context.create_server("127.0.0.1:0").await?;
//! let client = context.create_client_factory().create_client(server.local_addr()).await?;
//! assert_eq!(client.client_id(), Some("app-1"));
//!
//! // The new secret applies to new connections; this connection stays open.
//! secrets.register_app("app-1", Secret::new("rotated"));
//! # Ok(())
//! # }
//! ```
//!
//! # Modes
//!
//! | mode | Spark | authenticates | encrypts | detects changed bytes |
//! |---|---|---|---|---|
//! | auth engine 2, AES-GCM | 4.1 and later | yes | yes | yes |
//! | auth engine 1 or 2, AES-CTR | 3.2 and later | yes | yes | no |
//! | auth engine before 3.2, AES-CTR (`legacy-auth`) | 2.4 to 3.1 | yes | yes | no |
//! | SASL with encryption (`legacy-auth`) | all | yes | 3DES or RC4 | yes, by HMAC-MD5 |
//! | SASL | all | yes | no | no |
//!
//! The auth engine of Spark 3.2 and later has forward secrecy: it agrees on keys by X25519. SASL
//! and the engine before 3.2 derive their keys from the secret, so an attacker who learns the
//! secret later can decrypt recorded connections. AES-GCM does not number messages, because Spark
//! does not: an attacker on the network path can still drop, repeat, reorder or reflect whole
//! messages. TLS has neither weakness.
//!
//! A context whose mode has a weakness logs one warning that names it, except inside of TLS, where
//! these weaknesses do not matter.
//!
//! # Stricter than Spark
//!
//! * Neither side serves an unauthenticated peer: no RPC, one-way message, chunk, stream, upload or
//!   merged block meta request. A peer that sends one is disconnected. The handler's `on_connected`
//!   and `on_disconnected` are called, but messages that it sends before authentication fail.
//! * A server's handshake times out after `spark.network.auth.rpcTimeout`. A context runs at most
//!   `spark.<m>.auth.maxHandshakes` handshakes at a time; others wait, at most for the same time.
//!   The connection of a peer that has sent 64 KiB without authenticating is closed.
//! * A handshake of an auth engine could be a replay of recorded messages. It is complete, for both
//!   limits, when the first encrypted message of the client has arrived.
//! * A peer whose handshake fails receives a fixed text and is disconnected. Only the local error
//!   contains the reason.
//! * A client or server uses SASL instead of the auth engine only if
//!   `spark.network.crypto.saslFallback` is set to `true`. Spark's default is `true`, with which an
//!   attacker on the network path can disable encryption or force 3DES.

mod bootstraps;
mod client_bootstrap;
mod crypto;
mod digest_md5;
mod directives;
mod engine;
mod error;
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public in `testing`"))]
mod gcm;
#[cfg(feature = "legacy-auth")]
mod legacy_engine;
#[cfg_attr(not(feature = "testing"), expect(unreachable_pub, reason = "public in `testing`"))]
mod message;
mod policy;
mod rpc_handler;
#[cfg(feature = "legacy-auth")]
mod sasl_encryption;
mod secret;
mod server_bootstrap;
mod server_handshake;
mod session_keys;
#[cfg(test)]
mod test_support;

pub(crate) use bootstraps::{check_unauthenticated, client_bootstraps, server_bootstraps};
pub use error::AuthError;
pub(crate) use policy::AuthPolicy;
pub use secret::{Secret, SecretKeyHolder, SecretStore};

/// Parts of the handshake that tests and fuzz targets use; not part of the API.
///
/// Enabled by the cargo feature `testing`. This module may change in every release.
#[cfg(feature = "testing")]
pub mod testing {
    pub use super::gcm::{GcmOpen, GcmSeal};
    pub use super::message::{AuthMessage, SaslMessage};
}

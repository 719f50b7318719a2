//! Authentication and encryption, byte-compatible with Spark 2.4 to 4.x.
//!
//! Part of the feature `auth`, which is off by default because its ciphers need a C compiler; a
//! configuration that asks for authentication is refused by a build without it. What only old peers
//! need, and should not be offered to others, is part of `legacy-auth`.
//!
//! [`TransportContext::with_auth`](crate::TransportContext::with_auth) makes every connection of a
//! context prove, in both directions, that it knows the secret of its application; the settings say
//! how (see [`TransportConf`](crate::TransportConf)).
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
//! let context = TransportContext::new(conf, NoOpRpcHandler::new()).with_auth("app-1", secrets.clone())?;
//! let server = context.create_server("127.0.0.1:0").await?;
//! let client = context.create_client_factory().create_client(server.local_addr()).await?;
//! assert_eq!(client.client_id(), Some("app-1"));
//!
//! secrets.register_app("app-1", Secret::new("rotated")); // for new connections; this one lives on
//! # Ok(())
//! # }
//! ```
//!
//! # Which mode
//!
//! | mode | peers | proves | hides | detects changes |
//! |---|---|---|---|---|
//! | auth engine 2, GCM | 4.1 and later | yes | yes | of bytes |
//! | auth engine 1 or 2, CTR | 3.2 and later | yes | yes | no |
//! | auth engine before 3.2, CTR (`legacy-auth`) | 2.4 to 3.1 | yes | yes | no |
//! | SASL with encryption (`legacy-auth`) | all | yes | 3DES or RC4 | of bytes, by MD5 |
//! | SASL | all | yes | no | no |
//!
//! Who learns the secret later can open what was recorded of SASL and of the engine before 3.2,
//! whose keys come from it; the auth engine agrees on keys by X25519. In GCM somebody on the path
//! can still drop, repeat, reorder or send back whole messages: Spark does not number them. TLS has
//! neither weakness. A context that uses a mode with a weakness of its own says so once, as a
//! warning; inside of TLS none matters.
//!
//! # Stricter than Spark
//!
//! * Before a connection is authenticated nothing of it is served, on either side: no RPC, one-way
//!   message, chunk, stream, upload or question for merged blocks. One that tries is closed. Life
//!   cycle callbacks are called, but what handlers send there is refused: nothing but the handshake
//!   passes.
//! * A server's handshake must be over within `spark.network.auth.rpcTimeout`, one context has at
//!   most `spark.<m>.auth.maxHandshakes` of them at once, and a peer that has sent 64 KiB without
//!   being authenticated is not read again.
//! * A peer that fails learns only that it failed, and is closed. This side's error says why.
//! * Falling back from the auth engine to SASL needs `spark.network.crypto.saslFallback=true` in so
//!   many words: Spark's default lets anybody on the path switch encryption off, or to 3DES.

mod client_bootstrap;
mod digest_md5;
mod directives;
mod engine;
mod error;
mod gcm;
#[cfg(feature = "legacy-auth")]
mod legacy_engine;
mod message;
mod policy;
mod rpc_handler;
#[cfg(feature = "legacy-auth")]
mod sasl_encryption;
mod secret;
mod server;
mod session_keys;
#[cfg(test)]
mod test_support;

pub use error::AuthError;
pub use gcm::{GcmOpen, GcmSeal};
pub use message::{AuthMessage, SaslMessage};
pub(crate) use policy::{AuthPolicy, check_unauthenticated, client_bootstraps, server_bootstraps};
pub use secret::{Secret, SecretKeyHolder, SecretStore};

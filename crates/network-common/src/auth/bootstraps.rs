//! Chooses the bootstraps of servers and clients by the policy of their context.
//!
//! `TransportContext` calls it for every server and every client factory.

use std::sync::Arc;

use futures::future::BoxFuture;

use super::client_bootstrap::AuthClientBootstrap;
use super::policy::AuthPolicy;
use super::server_bootstrap::AuthServerBootstrap;
use crate::client::TransportClient;
use crate::conf::TransportConf;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{TransportClientBootstrap, TransportServerBootstrap};

type ServerBootstraps = Vec<Arc<dyn TransportServerBootstrap>>;
type ClientBootstraps = Vec<Arc<dyn TransportClientBootstrap>>;

/// Returns the bootstraps of accepted connections: `bootstraps` and authentication.
///
/// # Errors
/// Without a policy and other bootstraps, those of [`check_unauthenticated`].
pub(crate) fn server_bootstraps(
    conf: &TransportConf,
    policy: Option<&Arc<AuthPolicy>>,
    mut bootstraps: ServerBootstraps,
) -> Result<ServerBootstraps, TransportError> {
    match policy {
        // The handler of the last bootstrap is the outermost one, so it rejects requests first.
        Some(policy) => bootstraps.push(Arc::new(AuthServerBootstrap::new(Arc::clone(policy)))),
        None if bootstraps.is_empty() => check_unauthenticated(conf)?,
        None => {}
    }
    Ok(bootstraps)
}

/// Returns the bootstraps of outgoing connections: authentication and `bootstraps`.
///
/// If the settings require authentication, but there is no policy, every connection fails.
pub(crate) fn client_bootstraps(
    conf: &TransportConf,
    policy: Option<&Arc<AuthPolicy>>,
    mut bootstraps: ClientBootstraps,
) -> ClientBootstraps {
    match policy {
        Some(policy) => {
            bootstraps.insert(0, Arc::new(AuthClientBootstrap::new(Arc::clone(policy))));
        }
        None if bootstraps.is_empty() => {
            if let Err(error) = check_unauthenticated(conf) {
                bootstraps.push(Arc::new(FailingBootstrap(error)));
            }
        }
        None => {}
    }
    bootstraps
}

/// Checks that the settings allow connections without authentication and encryption.
///
/// # Errors
/// Kind [`Config`](ErrorKind::Config) if they do not.
pub(crate) fn check_unauthenticated(conf: &TransportConf) -> Result<(), TransportError> {
    let auth = conf.auth();
    let text = if conf.authenticate() {
        "spark.authenticate is true, but the context has no secrets: call \
         TransportContext::with_auth"
    } else if auth.crypto || auth.sasl_encryption {
        // The text of Spark's `SparkConf.validateSettings`.
        "spark.authenticate must be enabled when enabling encryption."
    } else {
        return Ok(());
    };
    Err(TransportError::new(ErrorKind::Config, text))
}

/// Fails every connection with the same error.
struct FailingBootstrap(TransportError);

impl TransportClientBootstrap for FailingBootstrap {
    fn do_bootstrap<'a>(&'a self, _: &'a TransportClient) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Err(self.0.clone().into()) })
    }
}

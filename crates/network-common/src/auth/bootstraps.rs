//! Adds the bootstrap that authenticates to the other bootstraps of servers and clients.
//!
//! `TransportContext` calls these functions for every server and every client factory.

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

/// Returns the bootstraps of accepted connections: `bootstraps`, then authentication.
///
/// Bootstraps of the user may authenticate instead of a policy, so they disable the check.
///
/// # Errors
/// Those of [`check_unauthenticated`] if there is neither a policy nor a bootstrap.
pub(crate) fn server_bootstraps(
    conf: &TransportConf,
    policy: Option<&Arc<AuthPolicy>>,
    mut bootstraps: ServerBootstraps,
) -> Result<ServerBootstraps, TransportError> {
    match policy {
        // The last bootstrap's handler is the outermost: it rejects unauthenticated requests
        // before another handler receives them.
        Some(policy) => bootstraps.push(Arc::new(AuthServerBootstrap::new(Arc::clone(policy)))),
        None if bootstraps.is_empty() => check_unauthenticated(conf)?,
        None => {}
    }
    Ok(bootstraps)
}

/// Returns the bootstraps of outgoing connections: authentication, then `bootstraps`.
///
/// If there is neither a policy nor a bootstrap, and [`check_unauthenticated`] fails, then every
/// connection fails with its error: creating a client factory cannot fail.
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
    let message = if conf.authenticate() {
        "spark.authenticate is true, but the context has no secrets: call \
         TransportContext::with_auth"
    } else if auth.crypto || auth.sasl_encryption {
        // The text of Spark's `SparkConf.validateSettings`.
        "spark.authenticate must be enabled when enabling encryption."
    } else {
        return Ok(());
    };
    Err(TransportError::new(ErrorKind::Config, message))
}

/// Fails every connection with the same error.
struct FailingBootstrap(TransportError);

impl TransportClientBootstrap for FailingBootstrap {
    fn do_bootstrap<'a>(&'a self, _: &'a TransportClient) -> BoxFuture<'a, Result<(), BoxError>> {
        Box::pin(async { Err(self.0.clone().into()) })
    }
}

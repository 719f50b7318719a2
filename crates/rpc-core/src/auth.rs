//! The secrets with which an environment authenticates itself and its peers.

use std::fmt;
use std::sync::Arc;

use network_common::auth::{Secret, SecretKeyHolder, SecretStore};
use network_common::{TransportContext, run_blocking};
use zeroize::Zeroizing;

use crate::conf::RpcConf;
use crate::error::{ErrorKind, RpcError};

const SECRET: &str = "spark.authenticate.secret";
const SECRET_FILE: &str = "spark.authenticate.secret.file";
/// The application id of every Spark process (`SecurityManager.getSaslUser`).
const SPARK_APP_ID: &str = "sparkSaslUser";

/// The application id of an environment, and the secrets by which it authenticates peers.
#[derive(Clone)]
pub(crate) struct AuthIdentity {
    pub(crate) app_id: String,
    pub(crate) secrets: Arc<dyn SecretKeyHolder>,
}

impl AuthIdentity {
    /// Returns the identity of a Spark process, with the secret from the settings.
    async fn from_conf(conf: &RpcConf) -> Result<Self, RpcError> {
        let secret = match (conf.get(SECRET), conf.get(SECRET_FILE)) {
            (Some(secret), _) if !secret.is_empty() => Secret::new(secret),
            (_, Some(path)) => read_secret(path).await?,
            _ => {
                let text = format!(
                    "spark.authenticate is true, but there is no secret: set {SECRET}, \
                     {SECRET_FILE} or RpcEnvBuilder::auth"
                );
                return Err(RpcError::new(ErrorKind::Config, text));
            }
        };
        let secrets = SecretStore::new();
        secrets.register_app(SPARK_APP_ID, secret);
        Ok(Self { app_id: SPARK_APP_ID.to_owned(), secrets: Arc::new(secrets) })
    }
}

impl fmt::Debug for AuthIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthIdentity").field("app_id", &self.app_id).finish_non_exhaustive()
    }
}

/// Reads the secret of a file on a blocking thread.
async fn read_secret(path: &str) -> Result<Secret, RpcError> {
    let owned = path.to_owned();
    let read = run_blocking(move || std::fs::read(owned).map(Zeroizing::new));
    let bytes = read.await.map_err(|error| {
        let text = format!("the secret file {path} ({SECRET_FILE}) cannot be read");
        RpcError::new(ErrorKind::Config, text).with_source(error)
    })?;
    if bytes.is_empty() {
        let text = format!("the secret file {path} ({SECRET_FILE}) is empty");
        return Err(RpcError::new(ErrorKind::Config, text));
    }
    Ok(Secret::from_file_content(&bytes))
}

/// Adds authentication to `context`: `given`, or that which the settings require.
pub(crate) async fn with_authentication(
    context: TransportContext,
    given: Option<AuthIdentity>,
    conf: &RpcConf,
) -> Result<TransportContext, RpcError> {
    let identity = match given {
        None if context.conf().authenticate() => AuthIdentity::from_conf(conf).await?,
        None => return Ok(context),
        Some(identity) => identity,
    };
    context.with_auth(identity.app_id, identity.secrets).map_err(RpcError::config)
}

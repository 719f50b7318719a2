//! [`ServiceError`], why the service does not start.

use std::sync::Arc;

use network_common::{BoxError, TransportError};

use crate::registry::StoreError;

/// The service cannot start, or cannot store a change.
///
/// ```
/// use network_common::TransportConf;
/// use network_shuffle::{ServiceError, ShuffleService, ShuffleServiceConf};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), network_common::BoxError> {
/// let settings = [
///     ("spark.shuffle.service.host", "no such host"),
///     ("spark.shuffle.service.db.enabled", "false"),
/// ];
/// let conf = ShuffleServiceConf::from_settings(settings)?;
/// let transport = TransportConf::new("shuffle");
/// let error = ShuffleService::start(&conf, transport, None).await.unwrap_err();
/// assert!(matches!(error, ServiceError::Transport(_)));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The address cannot be bound, or the settings of authentication or TLS cannot be used.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The secrets of applications cannot be used; the text of the cause names the setting.
    #[error("the secrets of applications cannot be used")]
    Secrets(#[source] BoxError),
    /// The store of registrations cannot be used.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

//! Shared secrets, and the trait by which handshakes look them up.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parking_lot::RwLock;
use zeroize::Zeroizing;

use super::AuthError;
use super::crypto::fill_random;

/// The SASL user name of every Spark process (`SecurityManager.getSaslUser`).
const SASL_USER: &str = "sparkSaslUser";

/// A shared secret.
///
/// It is cheap to clone, wiped from memory when the last clone is dropped, and not shown by
/// `Debug`.
///
/// ```
/// let secret = network_common::auth::Secret::new("s3cret");
/// assert_eq!(format!("{secret:?}"), "Secret(..)");
/// ```
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Creates a secret from the text that `spark.authenticate.secret` would contain.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    /// Creates the secret of a process with `spark.authenticate.secret.file`.
    ///
    /// It is the Base64 of all bytes of the file, as in `SecurityManager.getSecretKey`.
    ///
    /// ```
    /// let secret = network_common::auth::Secret::from_file_content(b"s3cret\n");
    /// # let _ = secret;
    /// ```
    #[must_use]
    pub fn from_file_content(content: &[u8]) -> Self {
        Self::new(BASE64_STANDARD.encode(content))
    }

    /// Creates a secret from 256 random bits.
    pub(super) fn random() -> Result<Self, AuthError> {
        let mut bytes = Zeroizing::new([0; 32]);
        fill_random(&mut *bytes)?;
        Ok(Self::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    }

    /// Returns the UTF-8 bytes of the secret.
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Provides the secret of each application (Spark's `SecretKeyHolder`).
///
/// Every handshake calls [`secret_key`](Self::secret_key) once, on the task that reads the
/// connection, so the method must not block. A changed secret applies to later handshakes;
/// authenticated connections stay open.
///
/// ```
/// use network_common::auth::{Secret, SecretKeyHolder};
///
/// /// All applications share one secret, as in Spark's core.
/// struct OneSecret(Secret);
///
/// impl SecretKeyHolder for OneSecret {
///     fn secret_key(&self, _app_id: &str) -> Option<Secret> {
///         Some(self.0.clone())
///     }
/// }
/// ```
pub trait SecretKeyHolder: Send + Sync + 'static {
    /// Returns the secret of this application, or `None` if it is unknown.
    fn secret_key(&self, app_id: &str) -> Option<Secret>;

    /// Returns the SASL user name of this application.
    ///
    /// The default is `sparkSaslUser`, which all of Spark's processes use.
    fn sasl_user(&self, app_id: &str) -> String {
        let _ = app_id;
        SASL_USER.to_owned()
    }
}

/// The secrets of several applications (Spark's `ShuffleSecretManager`).
///
/// ```
/// use network_common::auth::{SecretKeyHolder, Secret, SecretStore};
///
/// let secrets = SecretStore::new();
/// secrets.register_app("app-1", Secret::new("s3cret"));
/// assert!(secrets.secret_key("app-1").is_some());
/// secrets.register_app("app-1", Secret::new("rotated")); // replaces the first secret
/// secrets.unregister_app("app-1");
/// assert!(secrets.secret_key("app-1").is_none());
/// ```
#[derive(Debug, Default)]
pub struct SecretStore(RwLock<HashMap<String, Secret>>);

impl SecretStore {
    /// Creates a store without applications.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets or replaces the secret of an application.
    pub fn register_app(&self, app_id: impl Into<String>, secret: Secret) {
        self.0.write().insert(app_id.into(), secret);
    }

    /// Removes an application.
    ///
    /// Its open connections stay open; its new connections fail to authenticate.
    pub fn unregister_app(&self, app_id: &str) {
        self.0.write().remove(app_id);
    }
}

impl SecretKeyHolder for SecretStore {
    fn secret_key(&self, app_id: &str) -> Option<Secret> {
        self.0.read().get(app_id).cloned()
    }
}

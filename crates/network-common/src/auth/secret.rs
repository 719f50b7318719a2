//! Who may know what: secrets and where they come from.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use zeroize::Zeroizing;

use super::AuthError;
use super::engine::random;

/// The SASL user of all of Spark (auth 0).
const SASL_USER: &str = "sparkSaslUser";

/// A shared secret. Cheap to clone; wiped from memory when the last clone is dropped; not shown by
/// `Debug`.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// Takes over the text of a secret, as `spark.authenticate.secret` would hold it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    /// One that nobody knows.
    pub(super) fn random() -> Result<Self, AuthError> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(&mut *bytes)?;
        Ok(Self::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Knows the secret of each application (Spark's `SecretKeyHolder`; auth 0).
///
/// It is asked once per handshake, on the task that reads the connection, so it must answer from
/// memory. A secret that changes counts for later handshakes; connections that are authenticated
/// live on.
pub trait SecretKeyHolder: Send + Sync + 'static {
    /// The secret of this application; `None`: there is no such application here.
    fn secret_key(&self, app_id: &str) -> Option<Secret>;

    /// The user name of this application in SASL. Spark's is one constant.
    fn sasl_user(&self, app_id: &str) -> String {
        let _ = app_id;
        SASL_USER.to_owned()
    }
}

/// Secrets of several applications behind one port (Spark's `ShuffleSecretManager`).
///
/// ```
/// use network_common::auth::{SecretKeyHolder, Secret, SecretStore};
///
/// let secrets = SecretStore::new();
/// secrets.register_app("app-1", Secret::new("s3cret"));
/// assert!(secrets.secret_key("app-1").is_some());
/// secrets.register_app("app-1", Secret::new("the next one")); // rotated
/// secrets.unregister_app("app-1");
/// assert!(secrets.secret_key("app-1").is_none());
/// ```
#[derive(Debug, Default)]
pub struct SecretStore(RwLock<HashMap<String, Secret>>);

impl SecretStore {
    /// Without any application.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the secret of an application, or replaces it.
    pub fn register_app(&self, app_id: impl Into<String>, secret: Secret) {
        self.0.write().insert(app_id.into(), secret);
    }

    /// Forgets an application: its connections live on, new ones are refused.
    pub fn unregister_app(&self, app_id: &str) {
        self.0.write().remove(app_id);
    }
}

impl SecretKeyHolder for SecretStore {
    fn secret_key(&self, app_id: &str) -> Option<Secret> {
        self.0.read().get(app_id).cloned()
    }
}

//! [`ShuffleServiceConf`], the settings of the service under Spark's names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use network_common::auth::Secret;
use network_common::{UnknownKey, parse_time};

use crate::conf_error::{ConfError, boolean, size};
use crate::secrets::SecretSource;

/// The settings of the external shuffle service, beside those of its transport.
///
/// Keys of other parts of Spark are ignored. Settings of connections, authentication and TLS are
/// those of [`TransportConf`](network_common::TransportConf) with the module `shuffle`.
///
/// ```
/// use network_shuffle::ShuffleServiceConf;
///
/// let conf = ShuffleServiceConf::from_settings([
///     ("spark.shuffle.service.port", "0"),
///     ("spark.shuffle.service.index.cache.size", "10m"),
/// ])?;
/// assert_eq!(conf.port(), 0);
///
/// let error = conf.with("spark.shuffle.service.port", "many").unwrap_err();
/// assert!(error.to_string().contains("spark.shuffle.service.port"));
/// # Ok::<(), network_shuffle::ConfError>(())
/// ```
///
/// # Settings
///
#[doc = include_str!("settings.md")]
#[derive(Debug, Clone)]
pub struct ShuffleServiceConf {
    unknown_keys: Vec<UnknownKey>,
    host: String,
    port: u16,
    local_dirs: Vec<PathBuf>,
    index_cache_size: u64,
    verify_block_paths: bool,
    fetch_rdd_enabled: bool,
    max_open_streams_size: u64,
    max_registrations_size: u64,
    max_pending_requests: usize,
    application_timeout: Duration,
    authenticate_secret: Option<Secret>,
    secret_file: Option<PathBuf>,
    secrets_dir: Option<PathBuf>,
    db_enabled: bool,
    db_dir: Option<PathBuf>,
    db_required: bool,
}

impl Default for ShuffleServiceConf {
    fn default() -> Self {
        Self {
            unknown_keys: Vec::new(),
            host: "0.0.0.0".to_owned(),
            port: 7337,
            local_dirs: Vec::new(),
            index_cache_size: 100 << 20,
            verify_block_paths: true,
            fetch_rdd_enabled: false,
            max_open_streams_size: 256 << 20,
            max_registrations_size: 256 << 20,
            max_pending_requests: 256,
            application_timeout: Duration::from_secs(60 * 60),
            authenticate_secret: None,
            secret_file: None,
            secrets_dir: None,
            db_enabled: true,
            db_dir: None,
            db_required: false,
        }
    }
}

impl ShuffleServiceConf {
    /// All settings as a table in Markdown.
    pub const SETTINGS: &str = include_str!("settings.md");

    /// Returns the defaults, changed by those `settings` that concern the service.
    ///
    /// # Errors
    /// A value is not valid; the text names key, value and the accepted values.
    pub fn from_settings<K: AsRef<str>, V: AsRef<str>>(
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, ConfError> {
        settings
            .into_iter()
            .try_fold(Self::default(), |conf, (key, value)| conf.with(key.as_ref(), value.as_ref()))
    }

    /// Returns these settings with one changed; a key of another part of Spark is ignored.
    ///
    /// # Errors
    /// The value is not valid; the text names key, value and the accepted values.
    pub fn with(mut self, key: &str, value: &str) -> Result<Self, ConfError> {
        self.set(key, value.trim()).map_err(|expected| ConfError {
            key: key.to_owned(),
            value: value.to_owned(),
            expected,
        })?;
        let tables = [(Self::SETTINGS, "shuffle")];
        self.unknown_keys.extend(UnknownKey::check(key, &tables, &["shuffle.service."]));
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key.strip_prefix("spark.shuffle.service.").unwrap_or(key) {
            "spark.local.dir" => self.local_dirs = paths(value)?,
            "host" => self.host = non_empty(value, "an address")?.to_owned(),
            "port" => self.port = value.parse().map_err(|_| "a number up to 65535")?,
            "index.cache.size" => self.index_cache_size = size(value)?,
            "verifyBlockPathsAtRead" => self.verify_block_paths = boolean(value)?,
            "fetch.rdd.enabled" => self.fetch_rdd_enabled = boolean(value)?,
            "maxOpenStreamsSize" => self.max_open_streams_size = size(value)?,
            "maxRegistrationsSize" => self.max_registrations_size = size(value)?,
            "maxPendingRequestsPerConnection" => {
                self.max_pending_requests = value.parse().map_err(|_| "a number")?;
            }
            "applicationTimeout" => self.application_timeout = parse_time(value)?,
            "spark.authenticate.secret" => {
                self.authenticate_secret = Some(Secret::new(non_empty(value, "a secret")?));
            }
            "spark.authenticate.secret.file" => {
                self.secret_file = Some(non_empty(value, "a path")?.into());
            }
            "secrets.dir" => self.secrets_dir = Some(non_empty(value, "a path")?.into()),
            "db.enabled" => self.db_enabled = boolean(value)?,
            "db.dir" => self.db_dir = Some(non_empty(value, "a path")?.into()),
            "db.required" => self.db_required = boolean(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Returns the keys that are probably typing errors, in the order in which they were set.
    #[must_use]
    pub fn unknown_keys(&self) -> &[UnknownKey] {
        &self.unknown_keys
    }

    /// Returns `spark.shuffle.service.host`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns `spark.shuffle.service.port`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns `spark.local.dir`; empty if it is not set.
    #[must_use]
    pub fn local_dirs(&self) -> &[PathBuf] {
        &self.local_dirs
    }

    /// Returns `spark.shuffle.service.index.cache.size` in bytes.
    #[must_use]
    pub fn index_cache_size(&self) -> u64 {
        self.index_cache_size
    }

    /// Returns `spark.shuffle.service.verifyBlockPathsAtRead`.
    #[must_use]
    pub fn verify_block_paths(&self) -> bool {
        self.verify_block_paths
    }

    /// Returns `spark.shuffle.service.fetch.rdd.enabled`.
    #[must_use]
    pub fn fetch_rdd_enabled(&self) -> bool {
        self.fetch_rdd_enabled
    }

    /// Returns `spark.shuffle.service.maxOpenStreamsSize` in bytes.
    #[must_use]
    pub fn max_open_streams_size(&self) -> u64 {
        self.max_open_streams_size
    }

    /// Returns `spark.shuffle.service.maxRegistrationsSize` in bytes.
    #[must_use]
    pub fn max_registrations_size(&self) -> u64 {
        self.max_registrations_size
    }

    /// Returns `spark.shuffle.service.maxPendingRequestsPerConnection`.
    #[must_use]
    pub fn max_pending_requests(&self) -> usize {
        self.max_pending_requests
    }

    /// Returns `spark.shuffle.service.applicationTimeout`; `None` keeps all applications.
    #[must_use]
    pub fn application_timeout(&self) -> Option<Duration> {
        Some(self.application_timeout).filter(|timeout| !timeout.is_zero())
    }

    /// Returns where the secrets are, if exactly one setting says it.
    pub(crate) fn secret_source(&self) -> Result<SecretSource, &'static str> {
        match (&self.authenticate_secret, &self.secret_file, &self.secrets_dir) {
            (Some(secret), None, None) => Ok(SecretSource::Text(secret.clone())),
            (None, Some(file), None) => Ok(SecretSource::File(file.clone())),
            (None, None, Some(dir)) => Ok(SecretSource::Directory(dir.clone())),
            (None, None, None) => Err("spark.authenticate is true, but there are no secrets: set \
                 spark.shuffle.service.secrets.dir, or spark.authenticate.secret.file or \
                 spark.authenticate.secret for one secret of all applications"),
            _ => Err("there are several sources of secrets: set only one of \
                 spark.shuffle.service.secrets.dir, spark.authenticate.secret.file and \
                 spark.authenticate.secret"),
        }
    }

    /// Returns the path of the store of registrations; `None` if it is disabled.
    #[must_use]
    pub fn db_file(&self) -> Option<PathBuf> {
        // A directory of its own, because others can write to local directories.
        let parent = || self.local_dirs.first().cloned().unwrap_or_else(std::env::temp_dir);
        let default = || parent().join("spark-shuffle-service");
        let dir = self.db_dir.as_deref().map_or_else(default, Path::to_owned);
        self.db_enabled.then(|| dir.join("registeredExecutors.redb"))
    }

    /// Returns `spark.shuffle.service.db.required`.
    #[must_use]
    pub fn db_required(&self) -> bool {
        self.db_required
    }
}

fn non_empty<'a>(value: &'a str, expected: &'static str) -> Result<&'a str, &'static str> {
    if value.is_empty() { Err(expected) } else { Ok(value) }
}

fn paths(value: &str) -> Result<Vec<PathBuf>, &'static str> {
    let paths: Vec<PathBuf> = value
        .split(',')
        .map(str::trim)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .collect();
    if paths.iter().all(|path| path.is_absolute()) {
        Ok(paths)
    } else {
        Err("absolute paths, separated by commas")
    }
}

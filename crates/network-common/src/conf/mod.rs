//! [`TransportConf`], the settings of one module under Spark's names and in Spark's units.

#[cfg(feature = "auth")]
mod auth;
mod known_keys;
mod load;
#[cfg(feature = "tls")]
mod tls;
mod value_parser;

use std::path::Path;
use std::time::Duration;

#[cfg(feature = "auth")]
pub(crate) use self::auth::{AuthConf, CipherName};
pub use self::known_keys::UnknownKey;
pub use self::load::load_settings;
#[cfg(feature = "tls")]
pub use self::tls::{TlsConf, TlsProtocol};
pub use self::value_parser::{size as parse_size, time as parse_time};
use crate::error::{ErrorKind, TransportError};

/// The largest payload of a frame in bytes: message type, header and the body in the frame.
///
/// One byte less than 2^31 - 1, as in Spark's `TransportFrameDecoder`.
pub const MAX_FRAME_PAYLOAD: u64 = (1 << 31) - 2;

/// The settings of one module, such as `rpc`, `shuffle` or `files` (Spark's `TransportConf`).
///
/// A whole Spark configuration can be passed: keys of other parts of Spark are ignored. A key that
/// is probably a typing error is in [`unknown_keys`](Self::unknown_keys), and
/// [`TransportContext`](crate::TransportContext) logs a warning for it.
///
/// ```
/// use network_common::TransportConf;
///
/// let conf = TransportConf::from_settings("shuffle", [
///     ("spark.network.timeout", "2min"),
///     ("spark.shuffle.io.numConnectionsPerPeer", "4"),
/// ])?;
/// assert_eq!(conf.connections_per_peer(), 4);
/// assert_eq!(conf.connection_timeout().unwrap().as_secs(), 120);
///
/// let error = conf.with("spark.shuffle.io.retryWait", "soon").unwrap_err();
/// assert!(error.to_string().contains("spark.shuffle.io.retryWait"));
/// # Ok::<(), network_common::TransportError>(())
/// ```
///
/// Without the feature `auth`, `spark.authenticate`, `spark.network.crypto.enabled` and
/// `spark.authenticate.enableSaslEncryption` must not be true; without the feature `tls`,
/// `spark.ssl.rpc.enabled` must not be true.
///
/// # Settings
///
#[doc = include_str!("settings.md")]
#[derive(Debug, Clone)]
pub struct TransportConf {
    module: String,
    unknown_keys: Vec<UnknownKey>,
    mode: Option<IoMode>,
    default_mode: Option<IoMode>,
    network_timeout: Duration,
    connection_timeout: Option<Duration>,
    connection_creation_timeout: Option<Duration>,
    backlog: i64,
    connections_per_peer: usize,
    receive_buffer: i64,
    send_buffer: i64,
    max_retries: u32,
    retry_wait: Duration,
    lazy_fd: bool,
    tcp_keep_alive: bool,
    max_chunks_being_transferred: u64,
    max_request_size: u64,
    max_write_queue_size: u64,
    max_held_bytes: Option<u64>,
    tcp_user_timeout: Option<Duration>,
    #[cfg(feature = "auth")]
    auth: AuthConf,
    #[cfg(feature = "tls")]
    tls: TlsConf,
}

/// The system calls that transfer bytes: the value of `spark.<m>.io.mode`.
///
/// ```
/// use network_common::{IoMode, TransportConf};
///
/// let conf = TransportConf::new("shuffle").with("spark.shuffle.io.mode", "nio")?;
/// assert_eq!(conf.io_mode(), IoMode::Nio);
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoMode {
    /// Portable system calls only: file bodies are copied through memory.
    Nio,
    /// The system calls of Linux, such as `sendfile`.
    Epoll,
    /// The system calls of macOS.
    Kqueue,
    /// The system calls of the system that this process runs on.
    Auto,
}

impl TransportConf {
    /// All settings as tables in Markdown; `<m>` stands for the module.
    pub const SETTINGS: &str = known_keys::SETTINGS;

    /// Returns the default settings of `module`.
    #[must_use]
    pub fn new(module: impl Into<String>) -> Self {
        Self {
            module: module.into(),
            unknown_keys: Vec::new(),
            mode: None,
            default_mode: None,
            network_timeout: Duration::from_secs(120),
            connection_timeout: None,
            connection_creation_timeout: None,
            backlog: -1,
            connections_per_peer: 1,
            receive_buffer: -1,
            send_buffer: -1,
            max_retries: 3,
            retry_wait: Duration::from_secs(5),
            lazy_fd: true,
            tcp_keep_alive: false,
            max_chunks_being_transferred: i64::MAX.unsigned_abs(),
            max_request_size: 256 << 20,
            max_write_queue_size: 64 << 20,
            max_held_bytes: None,
            tcp_user_timeout: None,
            #[cfg(feature = "auth")]
            auth: AuthConf::default(),
            #[cfg(feature = "tls")]
            tls: TlsConf::default(),
        }
    }

    /// Returns the defaults, changed by those `settings` that concern `module`.
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config); the text names key, value and the accepted values.
    pub fn from_settings<K: AsRef<str>, V: AsRef<str>>(
        module: impl Into<String>,
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, TransportError> {
        Self::new(module).with_all(settings)
    }

    fn with_all<K: AsRef<str>, V: AsRef<str>>(
        self,
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, TransportError> {
        settings
            .into_iter()
            .try_fold(self, |conf, (key, value)| conf.with(key.as_ref(), value.as_ref()))
    }

    /// Returns the settings of a properties file and of the environment, changed by `overrides`.
    ///
    /// [`load_settings`] describes both.
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use network_common::TransportConf;
    ///
    /// let file = Path::new("/etc/spark/spark-defaults.conf");
    /// let conf = TransportConf::load("shuffle", Some(file), [("spark.shuffle.io.backLog", "64")])?;
    /// # Ok::<(), network_common::TransportError>(())
    /// ```
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config) if the file cannot be read, or a value is not valid.
    pub fn load<K: AsRef<str>, V: AsRef<str>>(
        module: impl Into<String>,
        file: Option<&Path>,
        overrides: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, TransportError> {
        let module = module.into();
        let loaded = load_settings(file, &[(Self::SETTINGS, &module)])?;
        Self::from_settings(module, loaded)?.with_all(overrides)
    }

    /// Returns these settings with one changed; a key of another part of Spark is ignored.
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config); the text names key, value and the accepted values.
    pub fn with(mut self, key: &str, value: &str) -> Result<Self, TransportError> {
        self.set(key, value.trim()).map_err(|accepted| {
            TransportError::new(
                ErrorKind::Config,
                format!("{key} has the invalid value '{value}'; expected {accepted}"),
            )
        })?;
        self.unknown_keys.extend(known_keys::check(&self.module, key));
        Ok(self)
    }

    /// Returns the keys that are probably typing errors, in the order in which they were set.
    ///
    /// A key is unknown if no setting has it, and if it is in a namespace that only this crate
    /// reads, such as `spark.<m>.io.`, or differs from a setting by at most two letters.
    #[must_use]
    pub fn unknown_keys(&self) -> &[UnknownKey] {
        &self.unknown_keys
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "spark.io.mode.default" => self.default_mode = Some(parse_mode(value)?),
            "spark.network.timeout" => self.network_timeout = value_parser::time(value)?,
            "spark.network.maxHeldBytes" => {
                let bytes = value_parser::positive_size(value, i64::MAX.unsigned_abs())?;
                self.max_held_bytes = Some(bytes);
            }
            "spark.shuffle.maxChunksBeingTransferred" => {
                self.max_chunks_being_transferred =
                    value_parser::positive(value, i64::MAX.unsigned_abs())?;
            }
            #[cfg(feature = "tls")]
            key if key.starts_with("spark.ssl.") => self.tls.set(key, value)?,
            #[cfg(not(feature = "tls"))]
            "spark.ssl.rpc.enabled" if value_parser::boolean(value)? => {
                return Err("false (network-common was built without its feature 'tls')");
            }
            #[cfg(not(feature = "auth"))]
            "spark.authenticate"
            | "spark.network.crypto.enabled"
            | "spark.authenticate.enableSaslEncryption"
                if value_parser::boolean(value)? =>
            {
                return Err("false (network-common was built without its feature 'auth')");
            }
            _ => {
                let module_key = key
                    .strip_prefix("spark.")
                    .and_then(|key| key.strip_prefix(self.module.as_str()));
                if let Some(name) = module_key.and_then(|key| key.strip_prefix(".io.")) {
                    self.set_io(name, value)?;
                }
                #[cfg(feature = "auth")]
                self.auth.set(key, module_key.unwrap_or_default(), value)?;
            }
        }
        Ok(())
    }

    fn set_io(&mut self, name: &str, value: &str) -> Result<(), &'static str> {
        match name {
            "mode" => self.mode = Some(parse_mode(value)?),
            "connectionTimeout" => self.connection_timeout = Some(value_parser::time(value)?),
            "connectionCreationTimeout" => {
                self.connection_creation_timeout = Some(value_parser::time(value)?)
            }
            "backLog" => self.backlog = value_parser::integer(value)?,
            "numConnectionsPerPeer" => {
                self.connections_per_peer =
                    value_parser::positive(value, u64::from(u16::MAX))? as usize;
            }
            "receiveBuffer" => self.receive_buffer = value_parser::size(value)?,
            "sendBuffer" => self.send_buffer = value_parser::size(value)?,
            "maxRetries" => {
                self.max_retries = u32::try_from(value_parser::integer(value)?)
                    .map_err(|_| "a whole number of at least 0")?;
            }
            "retryWait" => self.retry_wait = value_parser::time(value)?,
            "lazyFD" => self.lazy_fd = value_parser::boolean(value)?,
            "enableTcpKeepAlive" => self.tcp_keep_alive = value_parser::boolean(value)?,
            "maxRequestSize" => {
                self.max_request_size = value_parser::positive_size(value, MAX_FRAME_PAYLOAD)?
            }
            "maxWriteQueueSize" => {
                self.max_write_queue_size =
                    value_parser::positive_size(value, i64::MAX.unsigned_abs())?;
            }
            "tcpUserTimeout" => self.tcp_user_timeout = Some(value_parser::time(value)?),
            _ => {}
        }
        Ok(())
    }

    /// Returns the module.
    #[must_use]
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Returns the full name of one of this module's settings, for error texts.
    pub(crate) fn setting_name(&self, name: &str) -> String {
        format!("spark.{}.{name}", self.module)
    }

    /// Returns `spark.<m>.io.mode`, else `spark.io.mode.default`.
    #[must_use]
    pub fn io_mode(&self) -> IoMode {
        self.mode.or(self.default_mode).unwrap_or(IoMode::Auto)
    }

    /// Returns whether the kernel may send file regions to the socket (`sendfile`).
    pub(crate) fn can_send_files_natively(&self) -> bool {
        cfg!(target_os = "linux") && self.io_mode() != IoMode::Nio
    }

    /// Returns `spark.<m>.io.connectionTimeout`; `None`: no timeout.
    #[must_use]
    pub fn connection_timeout(&self) -> Option<Duration> {
        non_zero(self.connection_timeout.unwrap_or(self.network_timeout))
    }

    /// Returns `spark.<m>.io.connectionCreationTimeout`; `None`: no timeout.
    #[must_use]
    pub fn connection_creation_timeout(&self) -> Option<Duration> {
        self.connection_creation_timeout.map_or_else(|| self.connection_timeout(), non_zero)
    }

    /// Returns the listen backlog, `spark.<m>.io.backLog`.
    #[must_use]
    pub fn backlog(&self) -> u32 {
        u32::try_from(self.backlog).ok().filter(|backlog| *backlog > 0).unwrap_or(1024)
    }

    /// Returns `spark.<m>.io.numConnectionsPerPeer`.
    #[must_use]
    pub fn connections_per_peer(&self) -> usize {
        self.connections_per_peer
    }

    /// Returns `spark.<m>.io.receiveBuffer` in bytes; `None`: the system's default.
    #[must_use]
    pub fn receive_buffer(&self) -> Option<usize> {
        usize::try_from(self.receive_buffer).ok().filter(|size| *size > 0)
    }

    /// Returns `spark.<m>.io.sendBuffer` in bytes; `None`: the system's default.
    #[must_use]
    pub fn send_buffer(&self) -> Option<usize> {
        usize::try_from(self.send_buffer).ok().filter(|size| *size > 0)
    }

    /// Returns `spark.<m>.io.maxRetries`: how often a block fetcher retries.
    ///
    /// This crate has no block fetcher; the value is for those built on it. Attempts of a
    /// [`RetryPolicy`](crate::RetryPolicy) contain the first one, so they are one more.
    #[must_use]
    pub fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// Returns `spark.<m>.io.retryWait`: how long a block fetcher waits before it retries.
    ///
    /// 95 % of it is also the fast-fail window of
    /// [`create_client_fast_fail`](crate::TransportClientFactory::create_client_fast_fail).
    #[must_use]
    pub fn retry_wait(&self) -> Duration {
        self.retry_wait
    }

    /// Returns `spark.<m>.io.lazyFD`: whether files are opened when they are sent.
    #[must_use]
    pub fn lazy_fd(&self) -> bool {
        self.lazy_fd
    }

    /// Returns `spark.<m>.io.enableTcpKeepAlive`.
    #[must_use]
    pub fn tcp_keep_alive(&self) -> bool {
        self.tcp_keep_alive
    }

    /// Returns `spark.shuffle.maxChunksBeingTransferred`.
    #[must_use]
    pub fn max_chunks_being_transferred(&self) -> u64 {
        self.max_chunks_being_transferred
    }

    /// Returns `spark.<m>.io.maxRequestSize` in bytes.
    #[must_use]
    pub fn max_request_size(&self) -> u64 {
        self.max_request_size
    }

    /// Returns `spark.<m>.io.maxWriteQueueSize` in bytes.
    #[must_use]
    pub fn max_write_queue_size(&self) -> u64 {
        self.max_write_queue_size
    }

    /// Returns `spark.network.maxHeldBytes`; `None`: a quarter of the memory.
    ///
    /// It is a setting of the process. The last context with this setting that opens or accepts
    /// connections decides. See [`ByteBudget`](crate::ByteBudget).
    #[must_use]
    pub fn max_held_bytes(&self) -> Option<u64> {
        self.max_held_bytes
    }

    /// Returns `spark.authenticate`: whether peers must authenticate.
    #[cfg(feature = "auth")]
    #[must_use]
    pub fn authenticate(&self) -> bool {
        self.auth.authenticate
    }

    #[cfg(feature = "auth")]
    pub(crate) fn auth(&self) -> &AuthConf {
        &self.auth
    }

    /// Returns the settings of TLS, `spark.ssl.rpc.*`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(&self) -> &TlsConf {
        &self.tls
    }

    /// Returns `spark.<m>.io.tcpUserTimeout`; `None`: the system's default.
    #[must_use]
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.tcp_user_timeout.and_then(non_zero)
    }
}

fn non_zero(duration: Duration) -> Option<Duration> {
    (!duration.is_zero()).then_some(duration)
}

fn parse_mode(value: &str) -> Result<IoMode, &'static str> {
    match value.to_ascii_uppercase().as_str() {
        "NIO" => Ok(IoMode::Nio),
        "EPOLL" if cfg!(target_os = "linux") => Ok(IoMode::Epoll),
        "KQUEUE" if cfg!(target_os = "macos") => Ok(IoMode::Kqueue),
        "AUTO" => Ok(IoMode::Auto),
        _ => Err("NIO, EPOLL (on Linux), KQUEUE (on macOS) or AUTO"),
    }
}

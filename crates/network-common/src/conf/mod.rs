//! Settings of one module, under Spark's names and in Spark's units.

#[cfg(feature = "auth")]
mod auth;
#[cfg(feature = "tls")]
mod tls;
mod value_parser;

use std::time::Duration;

#[cfg(feature = "auth")]
pub(crate) use self::auth::{AuthConf, CipherName};
#[cfg(feature = "tls")]
pub use self::tls::{TlsConf, TlsProtocol};
pub use self::value_parser::{size as parse_size, time as parse_time};
use crate::error::{ErrorKind, TransportError};
use crate::protocol::MAX_FRAME_PAYLOAD;

/// Typed view of the settings of one module ("rpc", "shuffle", "files", ...; transport 3).
///
/// `<m>` stands for the module. Times are integers with a suffix us, ms, s, m, min, h or d, without
/// one seconds; sizes are integers with b, k, m, g, t or p (binary; also kb, mb, ...), without one
/// bytes.
///
/// | key | default | meaning |
/// |---|---|---|
/// | `spark.<m>.io.mode`, `spark.io.mode.default` | AUTO | NIO: portable calls only; EPOLL (Linux), KQUEUE (macOS), AUTO: with the system's own, as sendfile |
/// | `spark.<m>.io.connectionTimeout` | `spark.network.timeout`, 120s | idle and request timeout of a connection; 0 or less: none |
/// | `spark.<m>.io.connectionCreationTimeout` | connectionTimeout | limit for connecting; 0 or less: none |
/// | `spark.<m>.io.backLog` | -1 | listen backlog; 0 or less: 1024 |
/// | `spark.<m>.io.numConnectionsPerPeer` | 1 | pool size per address |
/// | `spark.<m>.io.receiveBuffer`, `.sendBuffer` | -1 | socket buffer sizes; 0 or less: the system's |
/// | `spark.<m>.io.maxRetries`, `.retryWait` | 3, 5s | for block fetchers; 95 % of retryWait is the fast-fail window |
/// | `spark.<m>.io.lazyFD` | true | open files when they are sent, not when they are answered |
/// | `spark.<m>.io.enableTcpKeepAlive` | false | keepalive on accepted sockets (outgoing ones always have it) |
/// | `spark.shuffle.maxChunksBeingTransferred` | 2^63-1 | chunks and streams served at once per context; beyond it connections are closed |
///
/// Authentication and encryption, with the feature `auth`, whose module tells which to choose;
/// without it, the three that switch something on must not be true:
///
/// | key | default | meaning |
/// |---|---|---|
/// | `spark.authenticate` | false | peers must prove that they know the application's secret; see `TransportContext::with_auth` |
/// | `spark.network.crypto.enabled` | false | by the auth engine (Spark 3.2 and later), then AES; otherwise by SASL DIGEST-MD5 |
/// | `spark.network.crypto.authEngineVersion` | 1 | how the session key is derived; both ends must agree. 2 is the better one (Spark 3.5 and later) |
/// | `spark.network.crypto.cipher` | AES/CTR/NoPadding | or AES/GCM/NoPadding, which alone detects changed bytes (Spark 4.1 and later) |
/// | `spark.network.crypto.saslFallback` | false (Spark: true) | SASL when the peer does not speak the auth engine, or somebody on the path says so |
/// | `spark.authenticate.enableSaslEncryption` | false | clients of SASL ask for encryption (feature `legacy-auth`) |
/// | `spark.network.sasl.serverAlwaysEncrypt` | false | servers of SASL refuse clients that do not (feature `legacy-auth`) |
/// | `spark.network.sasl.maxEncryptedBlockSize` | 64k | bytes per encrypted block of SASL |
/// | `spark.network.auth.rpcTimeout` | `spark.<m>.sasl.timeout`, 30s | limit for each round trip of a client's handshake, and for the whole of a server's |
/// | `spark.network.crypto.keyLength`, `.keyFactoryIterations` | 128, 1024 | of the auth engine before Spark 3.2 (feature `legacy-auth`) |
///
/// These have no counterpart in Spark:
///
/// | key | default | meaning |
/// |---|---|---|
/// | `spark.<m>.auth.maxHandshakes` | 1024 | connections of a context's servers that are not authenticated yet; more are refused |
/// | `spark.network.crypto.legacyEngine` | false | clients speak the auth engine before Spark 3.2, servers accept it too (feature `legacy-auth`) |
/// | `spark.<m>.io.maxRequestSize` | 256m | the longest request frame accepted from a peer (uploaded data does not count) |
/// | `spark.<m>.io.maxWriteQueueSize` | 64m | bytes queued per connection before requests are refused and the peer's are no longer read |
/// | `spark.<m>.io.tcpUserTimeout` | connectionTimeout | how long sent data may stay unacknowledged (Linux); 0 or less: the system's |
///
/// `spark.ssl.rpc.*` is TLS, of all modules: see `TlsConf` (feature `tls`; without it
/// `spark.ssl.rpc.enabled = true` is refused).
///
/// Keys of other modules, and of Spark's that mean nothing here (threads, allocators), are ignored,
/// so that a whole Spark configuration can be passed.
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
#[derive(Debug, Clone)]
pub struct TransportConf {
    module: String,
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
    tcp_user_timeout: Option<Duration>,
    #[cfg(feature = "auth")]
    auth: AuthConf,
    #[cfg(feature = "tls")]
    tls: TlsConf,
}

/// Which system calls move bytes; see `spark.<m>.io.mode` of [`TransportConf`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoMode {
    /// Calls that every system has: files pass through memory.
    Nio,
    /// Linux's own.
    Epoll,
    /// macOS' own.
    Kqueue,
    /// The best this system has.
    Auto,
}

impl TransportConf {
    /// All defaults.
    pub fn new(module: impl Into<String>) -> Self {
        Self {
            module: module.into(),
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
            tcp_user_timeout: None,
            #[cfg(feature = "auth")]
            auth: AuthConf::default(),
            #[cfg(feature = "tls")]
            tls: TlsConf::default(),
        }
    }

    /// Defaults, changed by those of `settings` that concern this module.
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config), naming key, value and what is accepted.
    pub fn from_settings<K: AsRef<str>, V: AsRef<str>>(
        module: impl Into<String>,
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, TransportError> {
        settings.into_iter().try_fold(Self::new(module), |conf, (key, value)| {
            conf.with(key.as_ref(), value.as_ref())
        })
    }

    /// These settings with one changed. Keys that are not of the table are ignored.
    ///
    /// # Errors
    /// Kind [`Config`](ErrorKind::Config), naming key, value and what is accepted.
    pub fn with(mut self, key: &str, value: &str) -> Result<Self, TransportError> {
        self.set(key, value.trim()).map_err(|accepted| {
            TransportError::new(
                ErrorKind::Config,
                format!("{key} has the value '{value}', but only {accepted} is accepted"),
            )
        })?;
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "spark.io.mode.default" => self.default_mode = Some(parse_mode(value)?),
            "spark.network.timeout" => self.network_timeout = value_parser::time(value)?,
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
                let own = key
                    .strip_prefix("spark.")
                    .and_then(|key| key.strip_prefix(self.module.as_str()));
                if let Some(name) = own.and_then(|name| name.strip_prefix(".io.")) {
                    self.set_io(name, value)?;
                }
                #[cfg(feature = "auth")]
                self.auth.set(key, own.unwrap_or_default(), value)?;
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
                self.max_retries =
                    u32::try_from(value_parser::integer(value)?).map_err(|_| "a count")?;
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

    /// The module these settings are of.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The full name of one of this module's settings, for error texts.
    pub(crate) fn setting_name(&self, name: &str) -> String {
        format!("spark.{}.{name}", self.module)
    }

    /// `spark.<m>.io.mode`, else `spark.io.mode.default`.
    pub fn io_mode(&self) -> IoMode {
        self.mode.or(self.default_mode).unwrap_or(IoMode::Auto)
    }

    /// Whether file regions may be sent by the kernel.
    pub(crate) fn native_file_transfer(&self) -> bool {
        cfg!(target_os = "linux") && self.io_mode() != IoMode::Nio
    }

    /// `spark.<m>.io.connectionTimeout`; `None`: no limit.
    pub fn connection_timeout(&self) -> Option<Duration> {
        non_zero(self.connection_timeout.unwrap_or(self.network_timeout))
    }

    /// `spark.<m>.io.connectionCreationTimeout`; `None`: no limit.
    pub fn connection_creation_timeout(&self) -> Option<Duration> {
        self.connection_creation_timeout.map_or_else(|| self.connection_timeout(), non_zero)
    }

    /// `spark.<m>.io.backLog`.
    pub fn backlog(&self) -> u32 {
        u32::try_from(self.backlog).ok().filter(|backlog| *backlog > 0).unwrap_or(1024)
    }

    /// `spark.<m>.io.numConnectionsPerPeer`.
    pub fn connections_per_peer(&self) -> usize {
        self.connections_per_peer
    }

    /// `spark.<m>.io.receiveBuffer`, in bytes; `None`: the system's.
    pub fn receive_buffer(&self) -> Option<usize> {
        usize::try_from(self.receive_buffer).ok().filter(|size| *size > 0)
    }

    /// `spark.<m>.io.sendBuffer`, in bytes; `None`: the system's.
    pub fn send_buffer(&self) -> Option<usize> {
        usize::try_from(self.send_buffer).ok().filter(|size| *size > 0)
    }

    /// `spark.<m>.io.maxRetries`: how often a block fetcher built on this crate should try again.
    pub fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// `spark.<m>.io.retryWait`: how long it should wait in between.
    pub fn retry_wait(&self) -> Duration {
        self.retry_wait
    }

    /// `spark.<m>.io.lazyFD`.
    pub fn lazy_fd(&self) -> bool {
        self.lazy_fd
    }

    /// `spark.<m>.io.enableTcpKeepAlive`.
    pub fn tcp_keep_alive(&self) -> bool {
        self.tcp_keep_alive
    }

    /// `spark.shuffle.maxChunksBeingTransferred`.
    pub fn max_chunks_being_transferred(&self) -> u64 {
        self.max_chunks_being_transferred
    }

    /// `spark.<m>.io.maxRequestSize`, in bytes.
    pub fn max_request_size(&self) -> u64 {
        self.max_request_size
    }

    /// `spark.<m>.io.maxWriteQueueSize`, in bytes.
    pub fn max_write_queue_size(&self) -> u64 {
        self.max_write_queue_size
    }

    /// `spark.authenticate`: whether peers must authenticate.
    #[cfg(feature = "auth")]
    pub fn authenticate(&self) -> bool {
        self.auth.authenticate
    }

    #[cfg(feature = "auth")]
    pub(crate) fn auth(&self) -> &AuthConf {
        &self.auth
    }

    /// `spark.ssl.rpc.*`.
    #[cfg(feature = "tls")]
    pub fn tls(&self) -> &TlsConf {
        &self.tls
    }

    /// `spark.<m>.io.tcpUserTimeout`; `None`: the system's.
    pub fn tcp_user_timeout(&self) -> Option<Duration> {
        self.tcp_user_timeout.map_or_else(|| self.connection_timeout(), non_zero)
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

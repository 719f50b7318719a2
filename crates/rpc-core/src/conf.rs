//! [`RpcConf`], the settings of an environment under Spark's names.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use network_common::{
    ByteBudget, TransportConf, UnknownKey, load_settings, parse_size, parse_time,
};

use crate::error::{ErrorKind, RpcError};
use crate::limits::{ByteLimit, InboxConf, OverflowPolicy, Volume};
use crate::timeout::RpcTimeout;

const ASK_TIMEOUT: &str = "spark.rpc.askTimeout";
const LOOKUP_TIMEOUT: &str = "spark.rpc.lookupTimeout";
const NETWORK_TIMEOUT: &str = "spark.network.timeout";
const INBOX_MESSAGES: &str = "spark.rpc.inbox.maxMessages";
const INBOX_BYTES: &str = "spark.rpc.inbox.maxBytes";
const INBOX_TOTAL_BYTES: &str = "spark.rpc.inbox.maxTotalBytes";
const ROUTE_QUEUE_MESSAGES: &str = "spark.rpc.route.maxQueuedMessages";
const ROUTE_QUEUE_BYTES: &str = "spark.rpc.route.maxQueuedBytes";
const MAX_ROUTES: &str = "spark.rpc.maxRoutesPerConnection";
const MAX_PENDING: &str = "spark.rpc.ask.maxPending";
const MAX_PENDING_PER_ENDPOINT: &str = "spark.rpc.ask.maxPendingPerEndpoint";
const SLOW_MESSAGE: &str = "spark.rpc.slowMessageThreshold";
const SHUTDOWN_TIMEOUT: &str = "spark.rpc.shutdownTimeout";
const MAX_MESSAGE_MIB: &str = "spark.rpc.message.maxSize";
const PORT_MAX_RETRIES: &str = "spark.port.maxRetries";
const NUM_RETRIES: &str = "spark.rpc.numRetries";
const RETRY_WAIT: &str = "spark.rpc.retry.wait";
const RETRY_BUDGET: &str = "spark.rpc.retry.budget";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// The namespaces below `spark.` that only this crate and the transport read.
const NAMESPACES: [&str; 7] = [
    "rpc.",
    "files.io.",
    "network.auth.",
    "network.crypto.",
    "network.sasl.",
    "authenticate",
    "ssl.rpc.",
];

/// The tables of settings, and the modules that they are for.
const TABLES: [(&str, &str); 3] =
    [(RpcConf::SETTINGS, ""), (TransportConf::SETTINGS, "rpc"), (TransportConf::SETTINGS, "files")];

/// The settings for asks.
#[derive(Clone, Debug)]
pub(crate) struct AskConf {
    pub(crate) timeout: RpcTimeout,
    pub(crate) attempts: u32,
    pub(crate) retry_wait: Duration,
    pub(crate) max_pending: usize,
    pub(crate) max_pending_per_endpoint: usize,
    pub(crate) max_message: usize,
}

/// The settings of an environment, under Spark's names.
///
/// Keys of other parts of Spark are ignored, so a whole Spark configuration can be passed. A key that
/// is probably a typing error is in [`unknown_keys`](Self::unknown_keys), and the start of an
/// environment logs a warning for it.
///
/// ```
/// use rpc_core::RpcConf;
///
/// let conf = RpcConf::from_settings([
///     ("spark.rpc.askTimeout", "30s"),
///     ("spark.rpc.inbox.maxMessages", "1000"),
/// ])?;
/// assert_eq!(conf.get("spark.rpc.askTimeout"), Some("30s"));
/// # Ok::<(), rpc_core::RpcError>(())
/// ```
///
/// # Settings
///
#[doc = include_str!("settings.md")]
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RpcConf {
    settings: BTreeMap<String, String>,
}

impl RpcConf {
    /// All settings of this crate as a table in Markdown.
    pub const SETTINGS: &str = include_str!("settings.md");

    /// Returns settings that all have their defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the given settings; of two with the same key, the later one counts.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if a value is not valid; the text names the key and the value.
    pub fn from_settings<K, V>(settings: impl IntoIterator<Item = (K, V)>) -> Result<Self, RpcError>
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        Self::new().with_all(settings)
    }

    fn with_all<K: AsRef<str>, V: AsRef<str>>(
        self,
        settings: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, RpcError> {
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
    /// use rpc_core::RpcConf;
    ///
    /// let file = Path::new("/etc/spark/spark-defaults.conf");
    /// let conf = RpcConf::load(Some(file), [("spark.rpc.askTimeout", "30s")])?;
    /// # Ok::<(), rpc_core::RpcError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the file cannot be read, or a value is not valid.
    pub fn load<K, V>(
        file: Option<&Path>,
        overrides: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, RpcError>
    where
        K: AsRef<str>,
        V: AsRef<str>,
    {
        let loaded = load_settings(file, &TABLES).map_err(RpcError::config)?;
        Self::from_settings(loaded)?.with_all(overrides)
    }

    /// Sets one setting.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the value is not valid; the text names the key and the value.
    pub fn with(mut self, key: &str, value: &str) -> Result<Self, RpcError> {
        self.settings.insert(key.to_owned(), value.to_owned());
        self.check()?;
        Ok(self)
    }

    /// Checks the values of all settings of this crate.
    fn check(&self) -> Result<(), RpcError> {
        self.duration(NETWORK_TIMEOUT)?;
        self.ask()?;
        self.lookup_timeout()?;
        self.inbox()?;
        self.amount(INBOX_TOTAL_BYTES, 1)?;
        self.route_queue_limits()?;
        self.max_routes()?;
        self.retry_budget()?;
        self.shutdown_timeout()?;
        self.port_max_retries().map(drop)
    }

    /// Returns the text that is set for `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    /// Returns all settings that are set, in the order of their keys.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the keys that are probably typing errors, in the order of the keys.
    ///
    /// A key is unknown if no setting of this crate or of the transport has it, and if it is in a
    /// namespace that only these read, such as `spark.rpc.`, or differs from a setting by at most
    /// two letters.
    #[must_use]
    pub fn unknown_keys(&self) -> Vec<UnknownKey> {
        let check = |(key, _): (&str, &str)| UnknownKey::check(key, &TABLES, &NAMESPACES);
        self.settings().filter_map(check).collect()
    }

    /// Returns the settings without the unknown keys of other modules than `module`.
    ///
    /// The start of an environment has reported those, so that the transport need not.
    pub(crate) fn settings_of(&self, module: &str) -> impl Iterator<Item = (&str, &str)> {
        let (unknown, own) = (self.unknown_keys(), format!("spark.{module}."));
        self.settings().filter(move |(key, _)| {
            key.starts_with(&own) || unknown.iter().all(|unknown| unknown.key != *key)
        })
    }

    pub(crate) fn duration(&self, key: &str) -> Result<Option<Duration>, RpcError> {
        self.parsed(key, "a whole number with a unit, such as 120s, 500ms or 2min", |value| {
            parse_time(value).ok().filter(|_| !value.starts_with('-'))
        })
    }

    pub(crate) fn ask(&self) -> Result<AskConf, RpcError> {
        let attempts = "a number of at least 1, as the first attempt counts";
        Ok(AskConf {
            timeout: RpcTimeout::from_conf(
                self,
                &[ASK_TIMEOUT, NETWORK_TIMEOUT],
                Some(DEFAULT_TIMEOUT),
            )?,
            attempts: self.integer(NUM_RETRIES, 3, 1..=u32::MAX, attempts)?,
            retry_wait: self.duration(RETRY_WAIT)?.unwrap_or(Duration::from_secs(3)),
            max_pending: self.amount(MAX_PENDING, 1_000_000)? as usize,
            max_pending_per_endpoint: self.amount(MAX_PENDING_PER_ENDPOINT, 250_000)? as usize,
            max_message: self.max_message()?,
        })
    }

    /// Returns the limit of bytes of one message.
    pub(crate) fn max_message(&self) -> Result<usize, RpcError> {
        let mib = self.integer(MAX_MESSAGE_MIB, 128, 1..=2047, "a number of MiB from 1 to 2047")?;
        Ok(mib as usize * (1 << 20))
    }

    pub(crate) fn lookup_timeout(&self) -> Result<RpcTimeout, RpcError> {
        RpcTimeout::from_conf(self, &[LOOKUP_TIMEOUT, NETWORK_TIMEOUT], Some(DEFAULT_TIMEOUT))
    }

    pub(crate) fn inbox(&self) -> Result<InboxConf, RpcError> {
        let messages = self.amount(INBOX_MESSAGES, 65_536)?;
        let bytes = self.amount(INBOX_BYTES, 64 << 20)?;
        let slow = self.duration(SLOW_MESSAGE)?.unwrap_or(Duration::from_secs(5));
        Ok(InboxConf::new(Volume::new(messages, bytes), OverflowPolicy::default(), slow))
    }

    pub(crate) fn shutdown_timeout(&self) -> Result<Duration, RpcError> {
        Ok(self.duration(SHUTDOWN_TIMEOUT)?.unwrap_or(Duration::from_secs(30)))
    }

    pub(crate) fn inbox_budget(&self, process: &ByteBudget) -> Result<ByteLimit, RpcError> {
        Ok(ByteLimit::new(self.amount(INBOX_TOTAL_BYTES, 512 << 20)?, process))
    }

    /// Returns the budget of routes, a quarter of that of messages.
    pub(crate) fn route_budget(&self, process: &ByteBudget) -> Result<ByteLimit, RpcError> {
        Ok(ByteLimit::new(self.amount(INBOX_TOTAL_BYTES, 512 << 20)? / 4, process))
    }

    pub(crate) fn route_queue_limits(&self) -> Result<Volume, RpcError> {
        Ok(Volume::new(
            self.amount(ROUTE_QUEUE_MESSAGES, 65_536)?,
            self.amount(ROUTE_QUEUE_BYTES, 64 << 20)?,
        ))
    }

    pub(crate) fn max_routes(&self) -> Result<u32, RpcError> {
        Ok(u32::try_from(self.amount(MAX_ROUTES, 65_536)?).unwrap_or(u32::MAX))
    }

    /// Returns the tokens of the retry budget of each peer.
    pub(crate) fn retry_budget(&self) -> Result<u32, RpcError> {
        self.integer(RETRY_BUDGET, 100, 0..=1_000_000, "a number from 0 to 1000000")
    }

    pub(crate) fn port_max_retries(&self) -> Result<u32, RpcError> {
        let default = if self.get("spark.testing").is_some() { 100 } else { 16 };
        self.integer(PORT_MAX_RETRIES, default, 0..=65_535, "a number from 0 to 65535")
    }

    fn integer(
        &self,
        key: &str,
        default: u32,
        range: RangeInclusive<u32>,
        expected: &str,
    ) -> Result<u32, RpcError> {
        let parse = |value: &str| value.parse().ok().filter(|number| range.contains(number));
        Ok(self.parsed(key, expected, parse)?.unwrap_or(default))
    }

    /// Parses a number of messages or bytes of at least 1; a limit of 0 would block everything.
    fn amount(&self, key: &str, default: u64) -> Result<u64, RpcError> {
        let amount = self.parsed(key, "a number above 0, such as 1000, 64k or 16m", |value| {
            u64::try_from(parse_size(value).ok()?).ok().filter(|amount| *amount > 0)
        })?;
        Ok(amount.unwrap_or(default))
    }

    fn parsed<T>(
        &self,
        key: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, RpcError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        parse(value.trim()).map(Some).ok_or_else(|| {
            RpcError::new(ErrorKind::Config, format!("{key} is `{value}`; it takes {expected}"))
        })
    }
}

/// Hides the values of keys that contain `password`, `secret` or `token`.
impl fmt::Debug for RpcConf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_secret = |key: &str| {
            let key = key.to_ascii_lowercase();
            ["password", "secret", "token"].iter().any(|word| key.contains(word))
        };
        let shown =
            self.settings().map(|(key, value)| (key, if is_secret(key) { "*****" } else { value }));
        f.debug_map().entries(shown).finish()
    }
}

impl RpcTimeout {
    /// Reads the first of `keys` that is set in `conf`.
    ///
    /// If none is set, the timeout is `default`, controlled by the first key. Values have Spark's
    /// form, such as `120s` or `500ms`; a bare number is in seconds. The counterpart in Spark is
    /// `RpcTimeout.apply`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if `keys` is empty, if the value is not a duration, or if no key is
    /// set and there is no default.
    pub fn from_conf(
        conf: &RpcConf,
        keys: &[&'static str],
        default: Option<Duration>,
    ) -> Result<Self, RpcError> {
        let Some(first) = keys.first() else {
            let text = "RpcTimeout::from_conf needs at least one key";
            return Err(RpcError::new(ErrorKind::Config, text));
        };
        for key in keys {
            if let Some(duration) = conf.duration(key)? {
                return Ok(Self::new(duration, *key));
            }
        }
        match default {
            Some(duration) => Ok(Self::new(duration, *first)),
            None => Err(RpcError::new(ErrorKind::Config, format!("{first} is not set"))),
        }
    }
}

//! [`BlockClientConf`], the settings of the block client under Spark's names.

use std::path::{Path, PathBuf};
use std::time::Duration;

use network_common::{UnknownKey, parse_time};

use super::governor::GovernorLimits;
use crate::conf_error::{ConfError, boolean, size};

/// The largest number of Spark's settings, which are Java integers.
const UNLIMITED: usize = i32::MAX as usize;

/// The settings of the block client, beside those of its transport.
///
/// Keys of other parts of Spark are ignored. Settings of connections, of authentication and of TLS
/// are those of [`TransportConf`](network_common::TransportConf) with the module `shuffle`. They
/// include the number of repetitions, `spark.shuffle.io.maxRetries`, and their wait,
/// `spark.shuffle.io.retryWait`.
///
/// ```
/// use network_shuffle::client::BlockClientConf;
///
/// let conf = BlockClientConf::from_settings([("spark.reducer.maxSizeInFlight", "96m")])?;
/// assert_eq!(conf.max_size_in_flight(), 96 << 20);
///
/// let error = conf.with("spark.reducer.maxReqsInFlight", "0").unwrap_err();
/// assert!(error.to_string().contains("spark.reducer.maxReqsInFlight"));
/// # Ok::<(), network_shuffle::ConfError>(())
/// ```
///
/// # Settings
///
#[doc = include_str!("settings.md")]
#[derive(Debug, Clone)]
pub struct BlockClientConf {
    unknown_keys: Vec<UnknownKey>,
    use_old_fetch_protocol: bool,
    max_size_in_flight: u64,
    max_reqs_in_flight: usize,
    max_blocks_in_flight_per_address: usize,
    max_fetch_to_mem: u64,
    local_dir: Option<PathBuf>,
    registration_timeout: Duration,
    registration_max_attempts: u32,
    sasl_enable_retries: bool,
}

impl Default for BlockClientConf {
    fn default() -> Self {
        Self {
            unknown_keys: Vec::new(),
            use_old_fetch_protocol: false,
            max_size_in_flight: 48 << 20,
            max_reqs_in_flight: UNLIMITED,
            max_blocks_in_flight_per_address: UNLIMITED,
            max_fetch_to_mem: 200 << 20,
            local_dir: None,
            registration_timeout: Duration::from_secs(5),
            registration_max_attempts: 3,
            sasl_enable_retries: false,
        }
    }
}

impl BlockClientConf {
    /// All settings as a table in Markdown.
    pub const SETTINGS: &str = include_str!("settings.md");

    /// Returns the defaults, changed by those `settings` that concern the client.
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
        self.unknown_keys.extend(UnknownKey::check(key, &tables, &["shuffle.registration."]));
        Ok(self)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "spark.shuffle.useOldFetchProtocol" => self.use_old_fetch_protocol = boolean(value)?,
            "spark.reducer.maxSizeInFlight" => self.max_size_in_flight = positive_size(value)?,
            "spark.reducer.maxReqsInFlight" => self.max_reqs_in_flight = positive(value)?,
            "spark.reducer.maxBlocksInFlightPerAddress" => {
                self.max_blocks_in_flight_per_address = positive(value)?;
            }
            "spark.network.maxRemoteBlockSizeFetchToMem" => self.max_fetch_to_mem = size(value)?,
            "spark.local.dir" => {
                let first = value.split(',').next().map(str::trim).unwrap_or_default();
                if first.is_empty() {
                    return Err("paths, separated by commas");
                }
                self.local_dir = Some(first.into());
            }
            "spark.shuffle.registration.timeout" => self.registration_timeout = millis(value)?,
            "spark.shuffle.registration.maxAttempts" => {
                self.registration_max_attempts =
                    u32::try_from(positive(value)?).map_err(|_| "a number of at least 1")?;
            }
            "spark.shuffle.sasl.enableRetries" => self.sasl_enable_retries = boolean(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Returns the keys that are probably typing errors, in the order in which they were set.
    #[must_use]
    pub fn unknown_keys(&self) -> &[UnknownKey] {
        &self.unknown_keys
    }

    /// Returns `spark.shuffle.useOldFetchProtocol`.
    #[must_use]
    pub fn use_old_fetch_protocol(&self) -> bool {
        self.use_old_fetch_protocol
    }

    /// Returns `spark.reducer.maxSizeInFlight` in bytes.
    #[must_use]
    pub fn max_size_in_flight(&self) -> u64 {
        self.max_size_in_flight
    }

    /// Returns `spark.reducer.maxReqsInFlight`.
    #[must_use]
    pub fn max_reqs_in_flight(&self) -> usize {
        self.max_reqs_in_flight
    }

    /// Returns `spark.reducer.maxBlocksInFlightPerAddress`.
    #[must_use]
    pub fn max_blocks_in_flight_per_address(&self) -> usize {
        self.max_blocks_in_flight_per_address
    }

    /// Returns `spark.network.maxRemoteBlockSizeFetchToMem` in bytes.
    #[must_use]
    pub fn max_remote_block_size_fetch_to_mem(&self) -> u64 {
        self.max_fetch_to_mem
    }

    /// Returns the directory for the files of fetched blocks: the first of `spark.local.dir`.
    #[must_use]
    pub fn local_dir(&self) -> PathBuf {
        self.local_dir.as_deref().map_or_else(std::env::temp_dir, Path::to_owned)
    }

    /// Returns `spark.shuffle.registration.timeout`.
    #[must_use]
    pub fn registration_timeout(&self) -> Duration {
        self.registration_timeout
    }

    /// Returns `spark.shuffle.registration.maxAttempts`.
    #[must_use]
    pub fn registration_max_attempts(&self) -> u32 {
        self.registration_max_attempts
    }

    /// Returns `spark.shuffle.sasl.enableRetries`.
    #[must_use]
    pub fn sasl_enable_retries(&self) -> bool {
        self.sasl_enable_retries
    }

    pub(super) fn governor_limits(&self) -> GovernorLimits {
        GovernorLimits {
            max_bytes: self.max_size_in_flight,
            max_requests: self.max_reqs_in_flight,
            max_blocks_per_location: self.max_blocks_in_flight_per_address,
        }
    }
}

fn positive_size(value: &str) -> Result<u64, &'static str> {
    let size = size(value)?;
    if size == 0 { Err("a size of at least 1 byte") } else { Ok(size) }
}

fn positive(value: &str) -> Result<usize, &'static str> {
    let number = value.parse().ok().filter(|number| (1..=UNLIMITED).contains(number));
    number.ok_or("a number from 1 to 2147483647")
}

/// Parses a time above 0, of which a plain number is in milliseconds.
fn millis(value: &str) -> Result<Duration, &'static str> {
    let time = match value.parse() {
        Ok(millis) => Duration::from_millis(millis),
        Err(_) => parse_time(value)?,
    };
    if time.is_zero() { Err("a time above 0") } else { Ok(time) }
}

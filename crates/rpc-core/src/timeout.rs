//! A time limit that knows which setting it came from.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use crate::conf::RpcConf;
use crate::error::{ErrorKind, RpcError};

/// A time limit, and the setting that controls it, so that the error says what to change (`rpc 9`).
///
/// A [`Duration`] becomes one without a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcTimeout {
    duration: Duration,
    setting: Option<Cow<'static, str>>,
}

impl RpcTimeout {
    /// `duration`, controlled by `setting`.
    #[must_use]
    pub fn new(duration: Duration, setting: impl Into<Cow<'static, str>>) -> Self {
        Self { duration, setting: Some(setting.into()) }
    }

    /// The value of the first of `keys` that `conf` sets, remembered with that key; if none is set,
    /// `default` with the first key. Values have Spark's form (`120s`, `500ms`); a bare number is
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if `keys` is empty, if the value is no duration, or if none is set and
    /// there is no default.
    pub fn from_conf(
        conf: &RpcConf,
        keys: &[&'static str],
        default: Option<Duration>,
    ) -> Result<Self, RpcError> {
        let Some(first) = keys.first() else {
            return Err(RpcError::new(
                ErrorKind::Config,
                "RpcTimeout::from_conf needs at least one key",
            ));
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

    /// The time limit.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// The setting that controls it.
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        self.setting.as_deref()
    }

    /// The error when it has passed without an answer from `peer`.
    pub(crate) fn timeout_error(&self, peer: impl Display) -> RpcError {
        let mut text = format!("Cannot receive any reply from {peer} in {:?}.", self.duration);
        if let Some(setting) = &self.setting {
            text.push_str(&format!(" This timeout is controlled by {setting}"));
        }
        RpcError::new(ErrorKind::Timeout, text).with_peer(peer)
    }
}

impl From<Duration> for RpcTimeout {
    fn from(duration: Duration) -> Self {
        Self { duration, setting: None }
    }
}

//! `RpcTimeout`: a timeout and the setting that it came from.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use crate::error::{ErrorKind, RpcError};

/// A timeout and the name of the setting that controls it.
///
/// The error of an expired ask names the setting. A [`Duration`] converts into a timeout without a
/// setting. The counterpart in Spark is `RpcTimeout`.
///
/// ```
/// use std::time::Duration;
///
/// use rpc_core::{RpcConf, RpcError, RpcTimeout};
///
/// # fn main() -> Result<(), RpcError> {
/// let conf = RpcConf::new().with("my.app.timeout", "30s")?;
/// let timeout = RpcTimeout::from_conf(&conf, &["my.app.timeout", "spark.rpc.askTimeout"], None)?;
/// assert_eq!(timeout.duration(), Duration::from_secs(30));
/// assert_eq!(timeout.setting(), Some("my.app.timeout"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcTimeout {
    duration: Duration,
    setting: Option<Cow<'static, str>>,
}

impl RpcTimeout {
    /// Makes a timeout that `setting` controls.
    #[must_use]
    pub fn new(duration: Duration, setting: impl Into<Cow<'static, str>>) -> Self {
        Self { duration, setting: Some(setting.into()) }
    }

    /// Returns the length of the timeout.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// Returns the name of the setting that controls the timeout, if there is one.
    #[must_use]
    pub fn setting(&self) -> Option<&str> {
        self.setting.as_deref()
    }

    /// Makes the error of an ask to `peer` that this timeout ended. The text is Spark's.
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

//! `RpcTimeout`: a timeout and the setting that it came from.

use std::borrow::Cow;
use std::fmt::Display;
use std::time::Duration;

use crate::error::{ErrorKind, RpcError};
use crate::peer_text::peer_name;

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
    /// The timeout that the caller chose, if a handler's request has an earlier deadline.
    shortened_from: Option<Duration>,
}

impl RpcTimeout {
    /// Makes a timeout that `setting` controls.
    #[must_use]
    pub fn new(duration: Duration, setting: impl Into<Cow<'static, str>>) -> Self {
        Self { duration, setting: Some(setting.into()), shortened_from: None }
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

    /// Returns this timeout shortened to the `rest` of the deadline that a nested ask inherits.
    pub(crate) fn inherit(&self, rest: Duration) -> Self {
        let shortened_from = Some(self.duration);
        Self { duration: rest, setting: self.setting.clone(), shortened_from }
    }

    /// Makes the error of an ask to `peer` that this timeout ended. The text is Spark's.
    pub(crate) fn timeout_error(&self, peer: impl Display) -> RpcError {
        let peer = peer.to_string();
        let peer = peer_name(&peer);
        let mut text = if self.duration.is_zero() {
            format!("The ask to {peer} was not sent.")
        } else {
            format!("Cannot receive any reply from {peer} in {:?}.", self.duration)
        };
        let setting = self.setting.as_ref();
        match self.shortened_from {
            Some(own) => {
                text.push_str(
                    " It inherited the deadline of the request that the calling handler serves",
                );
                if self.duration.is_zero() {
                    text.push_str(", which has passed");
                }
                text.push_str(&format!("; its own timeout is {own:?}"));
                if let Some(setting) = setting {
                    text.push_str(&format!(" ({setting})"));
                }
            }
            None => {
                if self.duration.is_zero() {
                    text.push_str(" Its timeout is zero.");
                }
                if let Some(setting) = setting {
                    text.push_str(&format!(" This timeout is controlled by {setting}"));
                }
            }
        }
        RpcError::new(ErrorKind::Timeout, text).with_peer(peer)
    }
}

impl From<Duration> for RpcTimeout {
    fn from(duration: Duration) -> Self {
        Self { duration, setting: None, shortened_from: None }
    }
}

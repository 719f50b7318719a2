//! Errors of other crates as errors of this one.

use std::fmt;

use network_common::TransportError;
use prost::DecodeError;

use super::{ErrorKind, RpcError};
use crate::peer_text::shorten;

/// The most bytes of the text of an error of prost, which names every nested field.
const MAX_DECODE_TEXT: usize = 256;

impl RpcError {
    /// Converts an error of the transport that concerns `peer`.
    pub(crate) fn from_transport(error: TransportError, peer: impl fmt::Display) -> Self {
        use network_common::ErrorKind as Transport;
        let kind = match error.kind() {
            Transport::Config => ErrorKind::Config,
            Transport::Bind => ErrorKind::Bind,
            Transport::Remote => ErrorKind::Rejected,
            Transport::StreamFailure => ErrorKind::FileUnavailable,
            Transport::Limit => ErrorKind::Limit,
            Transport::Bootstrap | Transport::Tls => ErrorKind::Authentication,
            _ => ErrorKind::Network,
        };
        let (is_remote, is_timeout) = (error.is_remote(), error.is_timeout());
        // The transport marks only errors of requests that were certainly not sent.
        let is_unsent = error.is_retryable();
        let converted = match kind {
            ErrorKind::Rejected => {
                Self::new(kind, format!("{peer} rejected the message")).with_source(error)
            }
            _ => Self::wrap(kind, error),
        };
        converted.with_peer(peer).change(|inner| {
            inner.remote = is_remote;
            inner.timeout = is_timeout;
            inner.retryable = is_unsent;
        })
    }

    /// Converts an error of the transport about a setting.
    pub(crate) fn config(error: TransportError) -> Self {
        Self::wrap(ErrorKind::Config, error)
    }

    /// Sets the error of prost that is the source. Its text repeats the name of each nested field,
    /// so a long one is shortened.
    pub(crate) fn with_decode_error(self, error: DecodeError) -> Self {
        let text = error.to_string();
        if text.len() > MAX_DECODE_TEXT {
            return self.with_source(shorten(&text, MAX_DECODE_TEXT));
        }
        self.with_source(error)
    }
}

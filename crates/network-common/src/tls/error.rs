//! The errors of TLS settings.

use crate::error::{ErrorKind, TransportError};

pub(super) fn config_error(text: impl Into<String>) -> TransportError {
    TransportError::new(ErrorKind::Config, text)
}

//! [`ConfError`], and the parsers of values that all settings share.

use network_common::parse_size;

/// A setting has a value that cannot be used.
///
/// ```
/// use network_shuffle::ShuffleServiceConf;
///
/// let error = ShuffleServiceConf::from_settings([("spark.shuffle.service.port", "99999")]);
/// assert_eq!(
///     error.unwrap_err().to_string(),
///     "spark.shuffle.service.port has the invalid value '99999'; expected a number up to 65535"
/// );
/// ```
#[derive(Debug, Clone, thiserror::Error)]
#[error("{key} has the invalid value '{value}'; expected {expected}")]
pub struct ConfError {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) expected: &'static str,
}

pub(crate) fn boolean(value: &str) -> Result<bool, &'static str> {
    match value.to_ascii_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("true or false"),
    }
}

pub(crate) fn size(value: &str) -> Result<u64, &'static str> {
    u64::try_from(parse_size(value)?).map_err(|_| "a size of 0 bytes or more")
}

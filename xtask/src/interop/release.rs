//! Version numbers of Spark releases.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail};

/// The version of a Spark release, such as 3.5.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Release {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Release {
    /// Returns whether this is `major.minor` or a later version.
    pub(crate) fn is_at_least(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl FromStr for Release {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<u32> = text
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("expected a Spark release such as 3.5.7, got {text:?}"))?;
        let [major, minor, patch] = parts[..] else {
            bail!("expected a Spark release such as 3.5.7, got {text:?}");
        };
        Ok(Self { major, minor, patch })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_parsed_and_compared_by_number() {
        let release = |text: &str| text.parse::<Release>().unwrap();
        assert_eq!(release("3.5.7").to_string(), "3.5.7");
        assert!(release("3.10.0") > release("3.9.1"));
        assert!(
            release("3.2.0").is_at_least(3, 2)
                && release("4.0.0").is_at_least(3, 2)
                && !release("3.1.9").is_at_least(3, 2)
        );
        for wrong in ["", "3", "3.5", "3.5.7.1", "3.5.x", "v3.5.7"] {
            assert!(wrong.parse::<Release>().is_err(), "{wrong}");
        }
    }
}

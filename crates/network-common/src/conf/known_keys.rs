//! The keys of all known settings, and the keys that are probably typing errors.

use std::fmt;

/// All settings, in tables that the documentation shows.
pub(super) const SETTINGS: &str = include_str!("settings.md");

/// The namespaces below `spark.` that only this crate reads; `<m>` is the module.
const NAMESPACES: [&str; 8] = [
    "<m>.io.",
    "<m>.sasl.",
    "<m>.auth.",
    "network.auth.",
    "network.crypto.",
    "network.sasl.",
    "authenticate",
    "ssl.rpc.",
];

/// A key with at most this number of typing errors is reported wherever it is.
const MAX_ERRORS: usize = 2;

/// A key that is probably a typing error, because no setting has it.
///
/// ```
/// use network_common::TransportConf;
///
/// let conf = TransportConf::new("rpc").with("spark.rpc.io.backlog", "64")?;
/// let unknown = &conf.unknown_keys()[0];
/// assert_eq!(unknown.key, "spark.rpc.io.backlog");
/// assert_eq!(unknown.nearest.as_deref(), Some("spark.rpc.io.backLog"));
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnknownKey {
    /// The key as it was set.
    pub key: String,
    /// The known key with the most similar text, if one is similar.
    pub nearest: Option<String>,
}

impl UnknownKey {
    /// Checks a key against tables of settings in Markdown, and the modules that they are for.
    ///
    /// The first column of a table contains the settings. A setting that ends in `*` is a prefix.
    /// `namespaces` are the prefixes without `spark.` below which every other key is unknown; keys
    /// elsewhere are unknown if they differ from a setting by at most two letters. `<m>` stands for
    /// the module of the table.
    #[doc(hidden)]
    #[must_use]
    pub fn check(key: &str, tables: &[(&str, &str)], namespaces: &[&str]) -> Option<Self> {
        let name = key.strip_prefix("spark.")?;
        let settings = || tables.iter().flat_map(|(table, module)| names(table, module));
        let is_known = |known: String| match known.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == known,
        };
        if settings().any(is_known) {
            return None;
        }
        let is_ours = namespaces.iter().any(|prefix| name.starts_with(prefix));
        let max = if is_ours { name.len() / 3 } else { MAX_ERRORS };
        // Comparing two texts is slow, and most keys of a Spark configuration differ in length.
        let letters = name.chars().count();
        let candidates = settings().filter(|known| known.len().abs_diff(letters) <= max);
        let nearest = candidates.map(|known| (strsim::osa_distance(&known, name), known)).min();
        let nearest = nearest.filter(|(errors, _)| *errors <= max).map(|(_, known)| known);
        (is_ours || nearest.is_some()).then(|| Self {
            key: key.to_owned(),
            nearest: nearest.map(|known| format!("spark.{known}")),
        })
    }
}

/// Returns the settings in a table, without `spark.`.
pub(super) fn names<'a>(table: &'a str, module: &'a str) -> impl Iterator<Item = String> + 'a {
    let rows = table.lines().filter_map(|row| row.strip_prefix("| `spark."));
    rows.filter_map(|row| row.split('`').next()).map(move |name| name.replace("<m>", module))
}

/// Checks a key against the settings of this crate.
pub(super) fn check(module: &str, key: &str) -> Option<UnknownKey> {
    let namespaces = NAMESPACES.map(|namespace| namespace.replace("<m>", module));
    let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
    UnknownKey::check(key, &[(SETTINGS, module)], &namespaces)
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no setting {}", self.key)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

//! Settings from a properties file and from environment variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{env, fs};

use super::known_keys;
use crate::error::{ErrorKind, TransportError};

/// Reads settings from a file in the form of `spark-defaults.conf`, and from the environment.
///
/// Without a `file`, it is `spark-defaults.conf` in `$SPARK_CONF_DIR`, else in `$SPARK_HOME/conf`,
/// if that exists (Spark's `Utils.getDefaultPropertiesFile`). Lines are `key value`, `key=value` or
/// `key: value`; `#` and `!` begin comments, and a backslash at the end continues a line
/// (`java.util.Properties`, in UTF-8). Keys without the prefix `spark.` are ignored, as in Spark.
///
/// The environment variable of a setting is its key in upper case with underscores, such as
/// `SPARK_RPC_ASKTIMEOUT` for `spark.rpc.askTimeout`. It replaces the value of the file. `tables`
/// are the tables of settings, and the modules that they are for.
///
/// # Errors
/// Kind [`Config`](ErrorKind::Config) if the file cannot be read.
///
/// ```no_run
/// use network_common::{TransportConf, load_settings};
///
/// let settings = load_settings(None, &[(TransportConf::SETTINGS, "shuffle")])?;
/// # Ok::<(), network_common::TransportError>(())
/// ```
pub fn load_settings(
    file: Option<&Path>,
    tables: &[(&str, &str)],
) -> Result<Vec<(String, String)>, TransportError> {
    let file = file.map(Path::to_owned).or_else(default_file);
    let text = file.map_or_else(|| Ok(String::new()), |file| read(&file))?;
    let mut settings = parse_properties(&text);
    settings.extend(from_environment(tables, |name| env::var_os(name)));
    Ok(settings)
}

fn read(file: &Path) -> Result<String, TransportError> {
    fs::read_to_string(file).map_err(|error| {
        let text = format!("the settings in {} cannot be read", file.display());
        TransportError::new(ErrorKind::Config, text).with_source(error)
    })
}

fn default_file() -> Option<PathBuf> {
    let folder = env::var_os("SPARK_CONF_DIR").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(env::var_os("SPARK_HOME")?).join("conf")))?;
    Some(folder.join("spark-defaults.conf")).filter(|file| file.is_file())
}

/// Returns the settings in `tables` whose variable is set.
fn from_environment(
    tables: &[(&str, &str)],
    variable: impl Fn(&str) -> Option<OsString>,
) -> Vec<(String, String)> {
    let keys = tables.iter().flat_map(|(table, module)| known_keys::names(table, module));
    let keys = keys.filter(|name| !name.ends_with('*')).map(|name| format!("spark.{name}"));
    keys.filter_map(|key| {
        let value = variable(&key.replace('.', "_").to_ascii_uppercase())?;
        Some((key, value.into_string().ok()?))
    })
    .collect()
}

/// Returns the keys and values of a properties file whose keys begin with `spark.`.
fn parse_properties(text: &str) -> Vec<(String, String)> {
    let mut lines = text.lines();
    let mut settings = Vec::new();
    while let Some(line) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.starts_with(['#', '!']) {
            continue;
        }
        while is_continued(&line) {
            line.pop();
            line.push_str(lines.next().unwrap_or_default().trim_start());
        }
        let (key, value) = split_property(&line);
        if key.starts_with("spark.") {
            settings.push((key, value.trim().to_owned()));
        }
    }
    settings
}

/// Returns whether an odd number of backslashes ends the line.
fn is_continued(line: &str) -> bool {
    line.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1
}

/// Splits a line at its first separator that has no backslash, and replaces escape sequences.
fn split_property(line: &str) -> (String, String) {
    let mut escaped = false;
    let is_end = |c: char| {
        let is_separator = !escaped && (c.is_whitespace() || c == '=' || c == ':');
        escaped = c == '\\' && !escaped;
        is_separator
    };
    let (key, rest) = line.split_at(line.find(is_end).unwrap_or(line.len()));
    let rest = rest.trim_start();
    let rest = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start();
    (unescape(key), unescape(rest))
}

/// Replaces `\t`, `\n`, `\r`, `\f`, and `\u` with four hexadecimal digits.
///
/// Any other escaped character stands for itself.
fn unescape(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            output.push(c);
            continue;
        }
        match rest.next() {
            Some('t') => output.push('\t'),
            Some('n') => output.push('\n'),
            Some('r') => output.push('\r'),
            Some('f') => output.push('\u{c}'),
            Some('u') => {
                let digits: String = rest.by_ref().take(4).collect();
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                output.push(code.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            Some(other) => output.push(other),
            None => {}
        }
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<(String, String)> {
        parse_properties(text)
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn properties_have_the_three_separators() {
        let text = "spark.a 1\nspark.b=2\nspark.c : 3 \n  spark.d\t=  x y \nspark.e";
        let expected = [
            ("spark.a", "1"),
            ("spark.b", "2"),
            ("spark.c", "3"),
            ("spark.d", "x y"),
            ("spark.e", ""),
        ];
        assert_eq!(parse(text), expected.map(|(key, value)| pair(key, value)));
    }

    #[test]
    fn comments_and_other_keys_are_ignored() {
        assert_eq!(
            parse("# spark.a 1\n ! spark.b 2\n\nother 3\nspark.c 4"),
            [pair("spark.c", "4")]
        );
    }

    #[test]
    fn backslash_continues_line_and_escapes() {
        assert_eq!(parse("spark.a one \\\n   two"), [pair("spark.a", "one two")]);
        assert_eq!(parse("spark.a\\:b C\\:\\\\dir\\u0041"), [pair("spark.a:b", "C:\\dirA")]);
        assert_eq!(
            parse("spark.a x\\\\\nspark.b y"),
            [pair("spark.a", "x\\"), pair("spark.b", "y")]
        );
        assert_eq!(parse("spark.a \\u00zz\\"), [pair("spark.a", "\u{fffd}")]);
    }

    #[test]
    fn variables_of_known_settings_are_read() {
        let table = "| `spark.<m>.io.backLog` | x |\n| `spark.x.*` | y |";
        let variable = |name: &str| (name == "SPARK_RPC_IO_BACKLOG").then(|| OsString::from("7"));
        assert_eq!(
            from_environment(&[(table, "rpc")], variable),
            [pair("spark.rpc.io.backLog", "7")]
        );
        assert_eq!(from_environment(&[(table, "files")], variable), []);
    }

    #[test]
    fn missing_file_is_named_in_error() {
        let error = load_settings(Some(Path::new("/nowhere/x.conf")), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("/nowhere/x.conf"), "{error}");
    }
}

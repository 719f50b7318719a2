//! The tokens of DIGEST-MD5: lists of `name=value` directives (RFC 2831, section 7.1).

use super::AuthError;

/// The maximum length of a token in bytes; tokens of Spark are below 1 KiB.
const MAX_TOKEN: usize = 4096;

/// A parsed token: lower-case names, each at most once, with their unquoted values.
#[derive(Debug)]
pub(super) struct Directives(Vec<(String, String)>);

impl Directives {
    pub(super) fn parse(token: &[u8]) -> Result<Self, AuthError> {
        let malformed = |text: &str| AuthError::Malformed(format!("SASL token: {text}"));
        if token.len() > MAX_TOKEN {
            return Err(malformed("longer than 4096 bytes"));
        }
        let mut rest = std::str::from_utf8(token).map_err(|_| malformed("not UTF-8"))?;
        let mut directives: Vec<(String, String)> = Vec::new();
        loop {
            // The RFC allows empty list elements.
            rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
            if rest.is_empty() {
                return Ok(Self(directives));
            }
            let (name, after_name) =
                rest.split_once('=').ok_or_else(|| malformed("a name has no value"))?;
            let name = name.trim_end().to_ascii_lowercase();
            if name.is_empty()
                || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            {
                return Err(malformed("a name has characters other than letters, digits and '-'"));
            }
            let (value, after_value) = parse_value(after_name.trim_start())
                .ok_or_else(|| malformed("a quoted value has no closing quote"))?;
            rest = after_value.trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(malformed("a value is not followed by a comma"));
            }
            if directives.iter().any(|(other, _)| *other == name) {
                return Err(AuthError::Malformed(format!("SASL token: {name} appears twice")));
            }
            directives.push((name, value));
        }
    }

    /// Returns the value of a directive, if the token has it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Returns the value of a directive that the token must have.
    pub(super) fn require(&self, name: &str) -> Result<&str, AuthError> {
        self.get(name).ok_or_else(|| AuthError::Malformed(format!("SASL token: {name} is missing")))
    }
}

/// Splits `text` into the value at its start and the rest; `None` if a quote is not closed.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t', '\r', '\n']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

/// Returns `text` in quotes, with quotes and backslashes escaped.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted.push('"');
    quoted
}

/// Returns whether `item` is in the list that a directive's value contains.
pub(super) fn list_contains(list: &str, item: &str) -> bool {
    list.split([',', ' ']).any(|other| other == item)
}

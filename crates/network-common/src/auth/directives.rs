//! The tokens of DIGEST-MD5: a list of `name=value`, where values may be quoted (RFC 2831, 7.1).

use super::AuthError;

/// More than any honest token has.
const MAX_TOKEN: usize = 4096;

/// A token that was read. Names are in lower case and stand once.
#[derive(Debug)]
pub(super) struct Directives(Vec<(String, String)>);

impl Directives {
    pub(super) fn parse(token: &[u8]) -> Result<Self, AuthError> {
        let malformed = |text: &str| AuthError::Malformed(format!("SASL token: {text}"));
        if token.len() > MAX_TOKEN {
            return Err(malformed("longer than 4096 bytes"));
        }
        let mut rest = std::str::from_utf8(token).map_err(|_| malformed("not UTF-8"))?;
        let mut found: Vec<(String, String)> = Vec::new();
        loop {
            // Empty list elements are allowed.
            rest = rest.trim_start_matches([',', ' ', '\t', '\r', '\n']);
            if rest.is_empty() {
                return Ok(Self(found));
            }
            let (name, behind) =
                rest.split_once('=').ok_or_else(|| malformed("a name without a value"))?;
            let name = name.trim_end().to_ascii_lowercase();
            if name.is_empty()
                || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            {
                return Err(malformed("a name with other characters than letters, digits and '-'"));
            }
            let (value, behind) =
                value(behind.trim_start()).ok_or_else(|| malformed("a quote is not closed"))?;
            rest = behind.trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(malformed("something behind a value"));
            }
            if found.iter().any(|(known, _)| *known == name) {
                return Err(AuthError::Malformed(format!("SASL token: two values for {name}")));
            }
            found.push((name, value));
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn required(&self, name: &str) -> Result<&str, AuthError> {
        self.get(name)
            .ok_or_else(|| AuthError::Malformed(format!("SASL token: there is no {name}")))
    }
}

/// A value and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
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

pub(super) fn quoted(text: &str) -> String {
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

/// The items of a list in one value.
pub(super) fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split([',', ' ']).filter(|item| !item.is_empty())
}

//! Texts and names from peers, as parts of errors, events and log lines: cut and escaped here, and
//! nowhere else.

use std::borrow::Cow;
use std::fmt::Write as _;

use network_common::can_forge;

/// The most bytes of one text of a peer: 1 KiB.
pub(crate) const MAX_PEER_TEXT: usize = 1 << 10;
/// The most bytes of one name, path or address of a peer.
const MAX_PEER_NAME: usize = 256;

/// Returns a text from a peer as it may appear in an error.
///
/// Characters that could forge a log line or control a terminal are escaped. A text of more than
/// [`MAX_PEER_TEXT`] bytes is shortened in the middle.
pub(crate) fn peer_text(text: &str) -> Cow<'_, str> {
    shorten(text, MAX_PEER_TEXT)
}

/// Returns a name, path or address from a peer as it may appear in an error, as by [`peer_text`].
pub(crate) fn peer_name(name: &str) -> Cow<'_, str> {
    shorten(name, MAX_PEER_NAME)
}

/// Returns `text`, escaped as by [`peer_text`] and shortened to at most `max` bytes.
pub(crate) fn shorten(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max && !text.chars().any(can_forge) {
        return Cow::Borrowed(text);
    }
    // The number of removed bytes has at most 20 digits.
    let half = max.saturating_sub(" [...  bytes ...] ".len() + 20) / 2;
    let mut whole = String::new();
    let fits = text.len() <= max
        && text.chars().all(|c| {
            push_escaped(&mut whole, c);
            whole.len() <= max
        });
    if fits {
        return Cow::Owned(whole);
    }
    let (mut head, mut head_end) = (String::new(), 0);
    for c in text.chars() {
        let len = head.len();
        push_escaped(&mut head, c);
        if head.len() > half {
            head.truncate(len);
            break;
        }
        head_end += c.len_utf8();
    }
    let (mut tail_start, mut tail_len, mut one) = (text.len(), 0, String::new());
    for c in text.chars().rev() {
        one.clear();
        push_escaped(&mut one, c);
        tail_len += one.len();
        if tail_len > half {
            break;
        }
        tail_start -= c.len_utf8();
    }
    let removed = tail_start.saturating_sub(head_end);
    let _ = write!(head, " [... {removed} bytes ...] ");
    text[tail_start..].chars().for_each(|c| push_escaped(&mut head, c));
    Cow::Owned(head)
}

fn push_escaped(out: &mut String, c: char) {
    if can_forge(c) {
        out.extend(c.escape_default());
    } else {
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_texts_are_unchanged() {
        for text in ["", "no such task", "größer als 5 µs", &"x".repeat(MAX_PEER_TEXT)] {
            assert_eq!(peer_text(text), text);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(peer_text("a\nb\r\u{1b}[31m"), "a\\nb\\r\\u{1b}[31m");
        assert_eq!(peer_text("\u{2028}\u{202e}\u{85}"), "\\u{2028}\\u{202e}\\u{85}");
    }

    #[test]
    fn long_texts_are_cut_in_the_middle() {
        for text in
            ["x".repeat(1 << 20), "\n".repeat(5000), "ä\u{1b}".repeat(600), "日".repeat(999)]
        {
            let text = format!("begin {text} end");
            let cut = peer_text(&text);
            assert!(cut.len() <= MAX_PEER_TEXT && cut.len() > MAX_PEER_TEXT - 100, "{}", cut.len());
            assert!(
                cut.starts_with("begin ") && cut.ends_with(" end") && cut.contains(" bytes ...] ")
            );
            assert!(!cut.chars().any(can_forge));
        }
        assert_eq!(shorten(&"x".repeat(100), 50).matches('x').count(), 12);
    }
}

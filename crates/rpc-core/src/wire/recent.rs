//! What requests over a connection begin with: the same bytes nearly always, which need not be read and checked again.

use std::ops::Range;

use super::request::{Malformed, Request};

/// The beginning is taken down anew only after so many requests that begin otherwise, as where many refs take turns.
const MISSES: u32 = 8;
/// A longer beginning is not taken down.
const MAX_BYTES: usize = 512;

/// The beginning of one of the latest requests, and what it says.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    bytes: Vec<u8>,
    texts: String,
    sender: Range<usize>,
    endpoint: Range<usize>,
    service: Range<usize>,
    method: Range<usize>,
    incarnation: u64,
    receiver_incarnation: u64,
    misses: u32,
}

impl Recent {
    /// What [`Request::read`] makes of `message`.
    pub(crate) fn read<'a>(&'a mut self, message: &'a [u8]) -> Result<Request<'a>, Malformed> {
        if !self.bytes.is_empty()
            && let Some(rest) = message.strip_prefix(&self.bytes[..])
        {
            let mut request = self.beginning();
            request.read(rest, false)?;
            return Ok(request);
        }
        let mut request = Request::default();
        let rest = request.read(message, true)?;
        let length = message.len() - rest.len();
        if (1..=MAX_BYTES).contains(&length) {
            self.misses += 1;
            if self.misses == MISSES {
                self.misses = 0;
                self.take_down(&message[..length], &request);
            }
        }
        request.read(rest, false)?;
        Ok(request)
    }

    fn beginning(&self) -> Request<'_> {
        Request {
            sender: &self.texts[self.sender.clone()],
            endpoint: &self.texts[self.endpoint.clone()],
            service: &self.texts[self.service.clone()],
            method: &self.texts[self.method.clone()],
            incarnation: self.incarnation,
            receiver_incarnation: self.receiver_incarnation,
            ..Request::default()
        }
    }

    fn take_down(&mut self, bytes: &[u8], request: &Request<'_>) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.texts.clear();
        let mut add = |text: &str| {
            let start = self.texts.len();
            self.texts.push_str(text);
            start..self.texts.len()
        };
        self.sender = add(request.sender);
        self.endpoint = add(request.endpoint);
        self.service = add(request.service);
        self.method = add(request.method);
        self.incarnation = request.incarnation;
        self.receiver_incarnation = request.receiver_incarnation;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prost::Message;

    use super::super::proto;
    use super::*;

    /// What both ways of reading make of the same message.
    fn both(recent: &mut Recent, message: &[u8]) -> [Option<String>; 2] {
        let recent = recent.read(message).ok().map(|request| format!("{request:?}"));
        let alone = Recent::default().read(message).ok().map(|request| format!("{request:?}"));
        [recent, alone]
    }

    fn request(endpoint: &str, method: &str, remaining: Duration) -> Vec<u8> {
        let request = proto::Request {
            sender: "host:7077".to_owned(),
            incarnation: 3,
            endpoint: endpoint.to_owned(),
            receiver_incarnation: 4,
            service: "pkg.Svc".to_owned(),
            method: method.to_owned(),
            remaining_us: remaining.as_micros() as u64,
            body: vec![7; 20].into(),
            ..proto::Request::default()
        };
        // The schema's order has receiver_incarnation behind the time; ours in front.
        request.encode_to_vec()
    }

    fn knows(endpoint: &str) -> Recent {
        let mut recent = Recent::default();
        for _ in 0..MISSES {
            let _ = recent.read(&request(endpoint, "Do", Duration::from_secs(1)));
        }
        assert!(!recent.bytes.is_empty());
        recent
    }

    #[test]
    fn nre_03_what_begins_as_before_is_read_as_if_it_did_not() {
        let mut recent = knows("ep");
        for (endpoint, method) in [("ep", "Do"), ("ep", "Undo"), ("ep2", "Do"), ("", ""), ("ep", "Do")] {
            for remaining in [Duration::ZERO, Duration::from_secs(9)] {
                let [recent, alone] = both(&mut recent, &request(endpoint, method, remaining));
                assert_eq!(recent, alone);
                assert!(alone.is_some());
            }
        }
        // A field that comes again, behind the beginning, counts.
        let mut again = request("ep", "Do", Duration::ZERO);
        again.extend(b"\x1a\x05other");
        assert_eq!(recent.read(&again).unwrap().endpoint, "other");
    }

    #[test]
    fn what_is_cut_or_changed_is_read_as_if_nothing_was_known() {
        let whole = request("ep", "Do", Duration::from_secs(1));
        for end in 0..whole.len() {
            for flipped in 0..=u8::BITS {
                let mut bytes = whole[..end].to_vec();
                if let (Some(last), true) = (bytes.last_mut(), flipped < u8::BITS) {
                    *last ^= 1 << flipped;
                }
                let [recent, alone] = both(&mut knows("ep"), &bytes);
                assert_eq!(recent, alone, "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_beginning_is_taken_down_after_some_that_differ_and_never_a_long_one() {
        let mut recent = knows("one");
        let known = recent.bytes.clone();
        for _ in 1..MISSES {
            recent.read(&request("two", "Do", Duration::ZERO)).unwrap();
            assert_eq!(recent.bytes, known);
        }
        recent.read(&request("two", "Do", Duration::ZERO)).unwrap();
        assert_ne!(recent.bytes, known);
        let long = "x".repeat(MAX_BYTES);
        for _ in 0..=MISSES {
            recent.read(&request(&long, "Do", Duration::ZERO)).unwrap();
        }
        assert!(recent.bytes.len() < MAX_BYTES);
    }
}

//! The rate limit of log lines that a peer can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Maximal number of lines from one place in one second.
const LINES_PER_SECOND: u32 = 10;

/// The rate limit of one place in the code; a static there.
///
/// One limit for all places would let a peer that sends garbage hide the lines about other peers.
#[derive(Debug)]
pub struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    /// `None` before the first line.
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Creates a limit that has admitted no line.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only statics")]
    pub const fn new() -> Self {
        Self(Mutex::new(Window { start: None, lines: 0, suppressed: 0 }))
    }

    /// Calls `log`, unless ten lines were logged from this place in this second.
    ///
    /// Passes the number of lines that were suppressed since the last one, if there are any.
    pub fn log(&self, log: impl FnOnce(Option<u64>)) {
        let admitted = self.0.lock().admit(Instant::now());
        // Not under the lock: the subscriber is the user's code.
        if let Some(suppressed) = admitted {
            log((suppressed > 0).then_some(suppressed));
        }
    }
}

/// Calls a closure as `LogLimit::log` does, with a limit for this place in the code.
#[doc(hidden)]
#[macro_export]
macro_rules! log_limited {
    ($log:expr) => {{
        static LIMIT: $crate::LogLimit = $crate::LogLimit::new();
        LIMIT.log($log);
    }};
}
pub(crate) use log_limited;

impl Window {
    /// Returns the number of suppressed lines if another line may be logged.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.start.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            self.start = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_u6_ten_lines_a_second_are_admitted() {
        let mut window = Window { start: None, lines: 0, suppressed: 0 };
        let start = Instant::now();
        for second in 0..3 {
            let now = start + Duration::from_secs(second);
            let admitted: Vec<_> = (0..1000)
                .filter_map(|milli| window.admit(now + Duration::from_millis(milli)))
                .collect();
            let mut expected = vec![0; 10];
            expected[0] = if second == 0 { 0 } else { 990 };
            assert_eq!(admitted, expected);
        }
    }

    #[test]
    fn fault_u6_each_place_has_its_own_limit() {
        let (mut flood, mut other) = (0, 0);
        // Fewer than 10 seconds pass, so the limit of the first place applies.
        for _ in 0..1000 {
            log_limited!(|_| flood += 1);
        }
        log_limited!(|suppressed: Option<u64>| {
            assert_eq!(suppressed, None);
            other += 1;
        });
        assert!((10..=100).contains(&flood), "{flood}");
        assert_eq!(other, 1);
    }
}

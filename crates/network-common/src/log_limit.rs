//! The rate limit of log lines that a peer can cause.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Maximal number of such lines of this process in one second.
const LINES_PER_SECOND: u32 = 10;

struct Window {
    /// `None` before the first line.
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

static WINDOW: Mutex<Window> = Mutex::new(Window { start: None, lines: 0, suppressed: 0 });

/// Calls `log`, unless ten lines were logged in this second.
///
/// Passes the number of lines that were suppressed since the last one, if there are any.
pub(crate) fn log_limited(log: impl FnOnce(Option<u64>)) {
    let admitted = WINDOW.lock().admit(Instant::now());
    // Not under the lock: the subscriber is the user's code.
    if let Some(suppressed) = admitted {
        log((suppressed > 0).then_some(suppressed));
    }
}

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
}

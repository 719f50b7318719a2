//! Credit-based flow control of one route, without I/O. Sender and receiver keep the same count;
//! the receiver grants.

use crate::limits::{CreditLimits, Volume};

/// What a new route begins with: one message of any size.
const INITIAL: Volume = Volume::new(1, 1);

/// Flags of [`RoutedMessage.blocked_by`](crate::wire::proto::RoutedMessage).
const BLOCKED_BY_MESSAGES: u32 = 1;
const BLOCKED_BY_BYTES: u32 = 2;

/// The sender's count of what it may send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SendCredit {
    messages: i64,
    bytes: i64,
}

impl SendCredit {
    pub(crate) fn new() -> Self {
        Self { messages: INITIAL.messages as i64, bytes: INITIAL.bytes as i64 }
    }

    pub(crate) fn none() -> Self {
        Self { messages: 0, bytes: 0 }
    }

    /// Whether one more message may be sent. It may overdraw the bytes, so that a message of
    /// any size can make progress.
    pub(crate) fn has_credit(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// Which credit is exhausted, for the receiver.
    pub(crate) fn blocked_by(&self) -> u8 {
        let flag = |is_exhausted, flag: u32| if is_exhausted { flag } else { 0 };
        (flag(self.messages <= 0, BLOCKED_BY_MESSAGES) | flag(self.bytes <= 0, BLOCKED_BY_BYTES))
            as u8
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub_unsigned(bytes as u64);
    }

    pub(crate) fn add(&mut self, more: Volume) {
        self.messages = self.messages.saturating_add_unsigned(more.messages);
        self.bytes = self.bytes.saturating_add_unsigned(more.bytes);
    }
}

/// The receiver's count for one route.
#[derive(Debug)]
pub(crate) struct RecvCredit {
    messages: CreditWindow,
    bytes: CreditWindow,
}

/// Totals since the route was opened.
#[derive(Debug)]
struct CreditWindow {
    received: u64,
    handled: u64,
    granted: u64,
    /// The most that may be outstanding or unhandled.
    window: u64,
}

impl RecvCredit {
    pub(crate) fn new() -> Self {
        let window =
            |initial| CreditWindow { received: 0, handled: 0, granted: initial, window: initial };
        Self { messages: window(INITIAL.messages), bytes: window(INITIAL.bytes) }
    }

    /// What the sender may still send.
    pub(crate) fn outstanding(&self) -> Volume {
        Volume::new(self.messages.outstanding(), self.bytes.outstanding())
    }

    /// Whether the next message is within the credit, so that the inbox must accept it.
    pub(crate) fn has_outstanding(&self) -> bool {
        self.messages.outstanding() > 0 && self.bytes.outstanding() > 0
    }

    pub(crate) fn has_unhandled(&self) -> bool {
        self.messages.received > self.messages.handled
    }

    pub(crate) fn on_received(&mut self, bytes: u64) {
        self.messages.received += 1;
        self.bytes.received += bytes;
    }

    /// Returns what to grant after `done` has been handled, if that is worth a notice.
    /// `free`: what the inbox could still grant to anyone; it resizes the window.
    pub(crate) fn on_handled<'a>(
        &mut self,
        done: Volume,
        free: impl FnOnce() -> Option<(Volume, &'a CreditLimits)>,
    ) -> Option<Volume> {
        self.messages.handled += done.messages;
        self.bytes.handled += done.bytes;
        if !self.messages.is_grant_due() && !self.bytes.is_grant_due() {
            return None;
        }
        if let Some((free, limits)) = free() {
            self.messages.resize(free.messages, limits.initial.messages, limits.usual.messages);
            self.bytes.resize(free.bytes, limits.initial.bytes, limits.usual.bytes);
        }
        self.grant()
    }

    /// The sender had to wait for credit. Returns what to grant, if the endpoint keeps up.
    /// `routes`: how many share the inbox.
    pub(crate) fn on_sender_blocked(
        &mut self,
        blocked_by: u32,
        free: Volume,
        limits: &CreditLimits,
        routes: u64,
    ) -> Option<Volume> {
        let share = |limit: u64| limit / (routes + 1);
        if blocked_by & BLOCKED_BY_MESSAGES != 0 {
            self.messages.widen(free.messages, share(limits.inbox.messages));
        }
        if blocked_by & BLOCKED_BY_BYTES != 0 {
            self.bytes.widen(free.bytes, share(limits.inbox.bytes));
        }
        self.grant()
    }

    /// The route leads to an inbox with these limits from now on, or to none. All received
    /// messages count as handled; granted credit stays granted.
    pub(crate) fn restart(&mut self, limits: Option<&CreditLimits>) -> Option<Volume> {
        let window = limits.map_or(INITIAL, |limits| limits.initial);
        self.messages.restart(window.messages);
        self.bytes.restart(window.bytes);
        self.grant()
    }

    /// The sender has returned all of its credit. The window is granted anew.
    pub(crate) fn on_credit_returned(&mut self) -> Option<Volume> {
        self.messages.granted = self.messages.received;
        self.bytes.granted = self.bytes.received;
        self.grant()
    }

    fn grant(&mut self) -> Option<Volume> {
        let more = Volume::new(self.messages.grant(), self.bytes.grant());
        (more != Volume::default()).then_some(more)
    }
}

impl CreditWindow {
    fn outstanding(&self) -> u64 {
        self.granted.saturating_sub(self.received)
    }

    /// Whether half of the window has been used and handled.
    fn is_grant_due(&self) -> bool {
        (self.handled + self.window).saturating_sub(self.granted) >= self.window.div_ceil(2)
    }

    fn resize(&mut self, free: u64, initial: u64, usual: u64) {
        if free >= self.window {
            self.window = self.window.max(usual.min(2 * self.window));
        } else if free == 0 {
            self.window = initial.max(self.window / 2);
        }
    }

    /// Grows the window unless the endpoint is what limits the sender: then much is unhandled.
    fn widen(&mut self, free: u64, share: u64) {
        let unhandled = self.received.saturating_sub(self.handled);
        if free >= self.window && unhandled <= self.window / 4 {
            self.window = self.window.max(share.min(2 * self.window));
        }
    }

    fn restart(&mut self, window: u64) {
        self.handled = self.received;
        self.window = window;
    }

    /// Grants what the window allows; returns how much more that is.
    fn grant(&mut self) -> u64 {
        let granted = self.granted.max(self.handled + self.window);
        granted - std::mem::replace(&mut self.granted, granted)
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;

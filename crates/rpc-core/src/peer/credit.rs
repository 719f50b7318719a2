//! Credit-based flow control of one route, without I/O. Sender and receiver count the same
//! messages, and the receiver grants credit for more.

use crate::limits::{CreditLimits, Volume};

/// The credit of a new route: one message. Its size may exceed the one byte of credit.
const INITIAL: Volume = Volume::new(1, 1);

/// Flags of [`RoutedMessage.blocked_by`](crate::wire::proto::RoutedMessage).
const BLOCKED_BY_MESSAGES: u32 = 1;
const BLOCKED_BY_BYTES: u32 = 2;

/// The sender's count of the messages and bytes that it may still send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SendCredit {
    messages: i64,
    bytes: i64,
}

impl SendCredit {
    /// Returns the credit of a new route.
    pub(crate) fn new() -> Self {
        Self { messages: INITIAL.messages as i64, bytes: INITIAL.bytes as i64 }
    }

    /// Returns zero credit, for a route that is being closed.
    pub(crate) fn none() -> Self {
        Self { messages: 0, bytes: 0 }
    }

    /// Returns whether one more message may be sent.
    ///
    /// The message may consume more bytes than are left, so that any size can make progress.
    pub(crate) fn has_credit(&self) -> bool {
        self.messages > 0 && self.bytes > 0
    }

    /// Returns the exhausted kinds of credit as flags, for the receiver.
    pub(crate) fn blocked_by(&self) -> u8 {
        let flag = |is_exhausted, flag: u32| if is_exhausted { flag } else { 0 };
        (flag(self.messages <= 0, BLOCKED_BY_MESSAGES) | flag(self.bytes <= 0, BLOCKED_BY_BYTES))
            as u8
    }

    /// Consumes the credit of one message.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.messages -= 1;
        self.bytes = self.bytes.saturating_sub_unsigned(bytes as u64);
    }

    /// Adds credit that the receiver granted.
    pub(crate) fn add(&mut self, granted: Volume) {
        self.messages = self.messages.saturating_add_unsigned(granted.messages);
        self.bytes = self.bytes.saturating_add_unsigned(granted.bytes);
    }
}

/// The receiver's count for one route.
#[derive(Debug)]
pub(crate) struct RecvCredit {
    messages: CreditWindow,
    bytes: CreditWindow,
}

/// The window and the totals of one unit, messages or bytes, since the route was opened.
#[derive(Debug)]
struct CreditWindow {
    received: u64,
    handled: u64,
    granted: u64,
    /// The most that may be outstanding and unhandled together.
    window: u64,
}

impl RecvCredit {
    pub(crate) fn new() -> Self {
        let window =
            |initial| CreditWindow { received: 0, handled: 0, granted: initial, window: initial };
        Self { messages: window(INITIAL.messages), bytes: window(INITIAL.bytes) }
    }

    /// Returns the credit that the sender holds.
    pub(crate) fn outstanding(&self) -> Volume {
        Volume::new(self.messages.outstanding(), self.bytes.outstanding())
    }

    /// Returns whether the sender holds credit, so that the inbox must accept its next message.
    pub(crate) fn has_outstanding(&self) -> bool {
        self.messages.outstanding() > 0 && self.bytes.outstanding() > 0
    }

    /// Returns whether a received message has not been handled.
    pub(crate) fn has_unhandled(&self) -> bool {
        self.messages.received > self.messages.handled
    }

    /// Counts one received message.
    pub(crate) fn on_received(&mut self, bytes: u64) {
        self.messages.received += 1;
        self.bytes.received += bytes;
    }

    /// Counts handled messages. Returns credit to grant once half of a window is free.
    ///
    /// Resizes the windows before it grants. `free` returns the volume that the inbox can still
    /// grant, and the limits of the windows. It returns `None` if the route has no target.
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

    /// Widens the window of a sender that waited for credit. Returns the credit to grant.
    ///
    /// Keeps the window if more than a quarter of it is unhandled, because the endpoint is then
    /// slower than the sender. Shrinks it if the inbox has less free capacity. `routes` is the
    /// number of routes that share the inbox.
    pub(crate) fn on_sender_blocked(
        &mut self,
        blocked_by: u32,
        free: Volume,
        limits: &CreditLimits,
        routes: u64,
    ) -> Option<Volume> {
        // One route gets at most a half of the inbox, and two routes get a third each.
        let share = |limit: u64| limit / (routes + 1);
        if blocked_by & BLOCKED_BY_MESSAGES != 0 {
            let share = share(limits.inbox.messages);
            self.messages.widen(free.messages, limits.initial.messages, share);
        }
        if blocked_by & BLOCKED_BY_BYTES != 0 {
            self.bytes.widen(free.bytes, limits.initial.bytes, share(limits.inbox.bytes));
        }
        self.grant()
    }

    /// Restarts the count for a new target. `limits` is `None` if the route has no target.
    ///
    /// All received messages count as handled. Granted credit stays granted. Returns the credit to
    /// grant.
    pub(crate) fn restart(&mut self, limits: Option<&CreditLimits>) -> Option<Volume> {
        let window = limits.map_or(INITIAL, |limits| limits.initial);
        self.messages.restart(window.messages);
        self.bytes.restart(window.bytes);
        self.grant()
    }

    /// Sets the outstanding credit to 0, because CloseRoute has returned it.
    ///
    /// Returns the new credit to grant.
    pub(crate) fn on_credit_returned(&mut self) -> Option<Volume> {
        self.messages.granted = self.messages.received;
        self.bytes.granted = self.bytes.received;
        self.grant()
    }

    /// Grants the credit that the windows allow. Returns `None` if there is none.
    fn grant(&mut self) -> Option<Volume> {
        let granted = Volume::new(self.messages.grant(), self.bytes.grant());
        (granted != Volume::default()).then_some(granted)
    }
}

impl CreditWindow {
    fn outstanding(&self) -> u64 {
        self.granted.saturating_sub(self.received)
    }

    /// Returns whether half of the window is free: neither granted nor unhandled.
    fn is_grant_due(&self) -> bool {
        (self.handled + self.window).saturating_sub(self.granted) >= self.window.div_ceil(2)
    }

    /// Adapts the window to the free capacity of the inbox.
    ///
    /// Doubles it up to `usual` if the inbox has capacity for one more window. Halves it down to
    /// `initial` if the inbox has no capacity.
    fn resize(&mut self, free: u64, initial: u64, usual: u64) {
        if free >= self.window {
            self.window = self.window.max(usual.min(2 * self.window));
        } else if free == 0 {
            self.window = initial.max(self.window / 2);
        }
        self.shrink_to(free, initial);
    }

    /// Shrinks the window so that the next grant is within `free`, but not below `initial`.
    fn shrink_to(&mut self, free: u64, initial: u64) {
        let held = self.granted.saturating_sub(self.handled);
        self.window = self.window.min(held.saturating_add(free)).max(initial);
    }

    /// Doubles the window up to `share`, for a sender that waited for credit.
    ///
    /// Keeps it if the inbox lacks capacity, or if more than a quarter of it is unhandled.
    fn widen(&mut self, free: u64, initial: u64, share: u64) {
        let unhandled = self.received.saturating_sub(self.handled);
        if free >= self.window && unhandled <= self.window / 4 {
            self.window = self.window.max(share.min(2 * self.window));
        }
        self.shrink_to(free, initial);
    }

    fn restart(&mut self, window: u64) {
        self.handled = self.received;
        self.window = window;
    }

    /// Grants the credit that the window allows. Returns the increase.
    fn grant(&mut self) -> u64 {
        let total = self.granted.max(self.handled + self.window);
        total - std::mem::replace(&mut self.granted, total)
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;

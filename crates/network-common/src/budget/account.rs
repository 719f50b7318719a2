//! [`ConnectionAccount`] and [`Reservation`]: the bytes that one connection holds.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::byte_budget::{ByteBudget, ConnectionAccount, STEP};
use crate::error::{ErrorKind, TransportError};
use crate::metrics::SideMetrics;

impl ConnectionAccount {
    pub(crate) fn new(
        budget: &ByteBudget,
        metrics: &Arc<SideMetrics>,
        peer: SocketAddr,
    ) -> Arc<Self> {
        let mut accounts = budget.0.accounts.lock();
        let entry = accounts.vacant_entry();
        let account = Arc::new(Self {
            budget: budget.clone(),
            metrics: Arc::clone(metrics),
            peer,
            key: entry.key(),
            unread: AtomicU64::new(0),
            incomplete: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            is_stalled: AtomicBool::new(false),
            is_closed: AtomicBool::new(false),
            end: OnceLock::new(),
        });
        entry.insert(Arc::downgrade(&account));
        account
    }

    /// Returns an account of a budget without limit.
    #[cfg(test)]
    pub(crate) fn unlimited() -> Arc<Self> {
        Self::new(&ByteBudget::new(u64::MAX), &Arc::default(), ([127, 0, 0, 1], 1).into())
    }

    /// Sets how the budget ends the connection.
    pub(crate) fn on_end(&self, end: impl Fn(TransportError) + Send + Sync + 'static) {
        // It is set once, when the connection is created.
        let _ = self.end.set(Box::new(end));
    }

    /// Returns the number of bytes that the connection holds.
    pub(super) fn held(&self) -> u64 {
        self.unread.load(Ordering::Relaxed) + self.incomplete.load(Ordering::Relaxed)
    }

    /// Returns the key among the accounts of the budget.
    pub(super) fn key(&self) -> usize {
        self.key
    }

    /// Returns the bytes transferred in the direction in which the connection holds bytes.
    pub(super) fn transferred(&self) -> u64 {
        let has_unread = self.unread.load(Ordering::Relaxed) >= STEP;
        let direction = if has_unread { &self.sent_bytes } else { &self.received_bytes };
        direction.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    /// Returns a reservation of 0 bytes for what the peer has not read.
    pub(crate) fn unread(self: &Arc<Self>) -> Reservation {
        Reservation { account: Arc::clone(self), is_unread: true, bytes: 0 }
    }

    /// Returns a reservation of 0 bytes for an incomplete message.
    pub(crate) fn incomplete(self: &Arc<Self>) -> Reservation {
        Reservation { account: Arc::clone(self), is_unread: false, bytes: 0 }
    }

    /// Counts a message that was refused; `is_needed` if others hold the bytes that it needs.
    pub(crate) fn count_refused(&self, is_needed: bool) {
        self.metrics.refused_messages.fetch_add(1, Ordering::Relaxed);
        self.budget.0.has_refused.fetch_or(is_needed, Ordering::Relaxed);
    }

    /// Closes the connection, which has made no progress for `quiet`.
    pub(super) fn close(&self, quiet: Option<Duration>) {
        if self.is_closed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.metrics.closed_for_budget.fetch_add(1, Ordering::Relaxed);
        let unread = self.unread.load(Ordering::Relaxed);
        let (peer, held) = (self.peer, self.held());
        let cause = match unread >= STEP {
            true => format!("has left {unread} bytes unread"),
            false => format!("has sent {held} bytes of messages that are not complete"),
        };
        let since = quiet.map(|quiet| format!(" for {quiet:.1?}")).unwrap_or_default();
        let text = format!(
            "closing the connection to {peer}, which {cause}{since}: {}",
            self.budget.limit_text()
        );
        if let Some(end) = self.end.get() {
            end(TransportError::new(ErrorKind::Io, text).with_peer(peer));
        }
    }
}

impl Drop for ConnectionAccount {
    fn drop(&mut self) {
        self.budget.0.accounts.lock().try_remove(self.key);
    }
}

impl std::fmt::Debug for ConnectionAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectionAccount")
            .field("peer", &self.peer)
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// Bytes of one owner within a connection; dropping it returns them.
#[derive(Debug)]
pub(crate) struct Reservation {
    account: Arc<ConnectionAccount>,
    is_unread: bool,
    /// The number of bytes that the account counts.
    bytes: u64,
}

impl Reservation {
    pub(crate) fn account(&self) -> &Arc<ConnectionAccount> {
        &self.account
    }

    /// Changes the number of bytes, unless it differs from the counted one by less than a step.
    #[inline]
    pub(crate) fn update(&mut self, bytes: u64) {
        if bytes.abs_diff(self.bytes) >= STEP {
            self.change(bytes);
        }
    }

    /// Changes the number of bytes.
    #[inline]
    pub(crate) fn set(&mut self, bytes: u64) {
        if bytes != self.bytes {
            self.change(bytes);
        }
    }

    #[inline(never)]
    fn change(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.account.budget.add(bytes - self.bytes);
        }
        self.record(bytes);
    }

    /// Returns whether the budget allows `bytes` more than are held.
    pub(crate) fn would_fit(&self, bytes: u64) -> bool {
        let budget = &self.account.budget;
        budget.held().saturating_add(bytes) <= budget.usual_limit()
    }

    /// Returns whether an empty budget allows `bytes`.
    pub(crate) fn may_ever_hold(&self, bytes: u64) -> bool {
        bytes <= self.account.budget.usual_limit()
    }

    /// Changes the number of bytes if the budget allows a larger one.
    pub(crate) fn try_grow(&mut self, bytes: u64) -> bool {
        let fits = self.account.budget.try_add(bytes.saturating_sub(self.bytes));
        if fits {
            self.record(bytes);
        }
        fits
    }

    /// Changes the counts to a number whose growth the budget counts already.
    fn record(&mut self, bytes: u64) {
        let account = &*self.account;
        let count = if self.is_unread { &account.unread } else { &account.incomplete };
        let before = std::mem::replace(&mut self.bytes, bytes);
        // A negative difference wraps; the sum is right.
        let difference = bytes.wrapping_sub(before);
        count.fetch_add(difference, Ordering::Relaxed);
        account.metrics.held_bytes.fetch_add(difference, Ordering::Relaxed);
        if bytes < before {
            account.budget.subtract(before - bytes);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

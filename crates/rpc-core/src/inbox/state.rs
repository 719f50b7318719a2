//! What is under an inbox's lock: its queue, what that holds, and what connections may send.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::task::Waker;

use foldhash::HashMap;
use network_common::ConnectionId;
use tokio::time::Instant;

use super::batch::Done;
use super::{Closed, Item};
use crate::credit::{Account, Volume, Windows};
use crate::link::Link;
use crate::origin::Origin;
use crate::sync::Notify;

pub(super) struct State<M> {
    pub(super) queue: VecDeque<Item<M>>,
    /// Of messages, queued or in hand.
    pub(super) held: Volume,
    /// There as long as a connection is that messages came over.
    accounts: Option<Box<Accounts>>,
    /// The loop, if it waits for something to come.
    pub(super) parked: Option<Waker>,
    /// How many [`Event::Undelivered`] are in the queue.
    pub(super) undelivered: u16,
    pub(super) closed: Option<Closed>,
    pub(super) ended: bool,
    pub(super) counts: Counts,
    /// Those who wait for room, if anybody does.
    pub(super) room_awaited: Option<Arc<Notify>>,
    /// Since when the queue has not been empty while the loop was busy.
    pub(super) queued_since: Option<Instant>,
    /// Since when what the loop has in hand keeps it busy, as far as is known.
    pub(super) in_hand_since: Option<Instant>,
}

/// What has become of messages.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) handled: u64,
    pub(super) failed: u64,
    pub(super) refused: u64,
    pub(super) dropped: u64,
    pub(super) expired: u64,
    /// Came after the inbox was closed.
    pub(super) late: u64,
}

/// Of the connections that messages came over.
#[derive(Default)]
struct Accounts {
    open: HashMap<ConnectionId, Account>,
    /// What they may still send.
    promised: Volume,
}

/// What is to be told, after the lock, when messages have been handled.
pub(super) struct Released {
    /// Those who wait for room, and there is some.
    pub(super) room: Option<Arc<Notify>>,
    pub(super) grants: Vec<(Arc<Link>, Volume)>,
}

impl<M> State<M> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            held: Volume::default(),
            accounts: None,
            parked: None,
            undelivered: 0,
            closed: None,
            ended: false,
            counts: Counts::default(),
            room_awaited: None,
            queued_since: None,
            in_hand_since: None,
        }
    }

    /// Whether there was none, and whether it expects a message.
    pub(super) fn open_account(&mut self, connection: ConnectionId, windows: &Windows) -> (bool, bool) {
        let accounts = self.accounts.get_or_insert_default();
        match accounts.open.entry(connection) {
            Entry::Occupied(account) => (false, account.get().expects()),
            Entry::Vacant(place) => {
                let account = place.insert(Account::new(windows));
                accounts.promised.add(account.promised());
                (true, account.expects())
            }
        }
    }

    pub(super) fn close_account(&mut self, connection: ConnectionId) {
        let Some(accounts) = &mut self.accounts else { return };
        if let Some(account) = accounts.open.remove(&connection) {
            accounts.promised.remove(account.promised());
        }
        if accounts.open.is_empty() {
            self.accounts = None;
        }
    }

    pub(super) fn receive(&mut self, connection: ConnectionId, bytes: u64) -> Option<Volume> {
        self.change(connection, |account| account.receive(bytes))?
    }

    /// The sender has given its credit back.
    pub(super) fn forgo(&mut self, connection: ConnectionId) {
        self.change(connection, Account::forgo);
    }

    /// Changes an account, if there is one, and with it what all accounts may still send.
    fn change<T>(&mut self, connection: ConnectionId, change: impl FnOnce(&mut Account) -> T) -> Option<T> {
        let accounts = self.accounts.as_deref_mut()?;
        let account = accounts.open.get_mut(&connection)?;
        accounts.promised.remove(account.promised());
        let result = change(account);
        accounts.promised.add(account.promised());
        Some(result)
    }

    /// Messages of a connection no longer count. Gives what its sender is to be told.
    pub(super) fn release(
        &mut self,
        done: Done,
        limit: Volume,
        windows: &Windows,
    ) -> Option<(Arc<Link>, Volume)> {
        self.held.remove(done.volume);
        let promised = self.accounts.as_ref().map(|accounts| accounts.promised).unwrap_or_default();
        let free = limit.minus(self.held).minus(promised);
        let more = self.change(done.link.id(), |account| account.handle(done.volume, free, windows))?;
        more.map(|more| (done.link, more))
    }

    /// Those who wait for room, if they are to be told. While the loop goes on they are told when half is free, so that
    /// they and the loop do not wake each other for every few messages.
    pub(super) fn room_for(&mut self, limit: Volume, goes_on: bool) -> Option<Arc<Notify>> {
        self.room_awaited.take_if(|_| self.held.fits(if goes_on { limit.half() } else { limit }))
    }

    /// Takes out the message that has waited longest.
    pub(super) fn take_oldest(&mut self) -> Option<(M, Origin)> {
        let place = self.queue.iter().position(|item| matches!(item, Item::Message { .. }))?;
        match self.queue.remove(place)? {
            Item::Message { message, origin } => Some((message, origin)),
            Item::Event(_) | Item::Stop => None,
        }
    }
}

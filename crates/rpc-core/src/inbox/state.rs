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

pub(super) struct State<M> {
    pub(super) queue: VecDeque<Item<M>>,
    /// Of messages, queued or in hand.
    pub(super) held: Volume,
    /// What the accounts may still send.
    pub(super) promised: Volume,
    /// Of the connections that messages came over.
    pub(super) accounts: HashMap<ConnectionId, Account>,
    /// The loop, if it waits for something to come.
    pub(super) parked: Option<Waker>,
    /// How many [`Event::Undelivered`] are in the queue.
    pub(super) undelivered: usize,
    pub(super) closed: Option<Closed>,
    pub(super) ended: bool,
    pub(super) counts: Counts,
    /// Somebody waits for room.
    pub(super) room_awaited: bool,
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

/// What is to be told, after the lock, when messages have been handled.
pub(super) struct Released {
    /// There is room where somebody waits for it.
    pub(super) room: bool,
    pub(super) grants: Vec<(Arc<Link>, Volume)>,
}

impl<M> State<M> {
    pub(super) fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            held: Volume::default(),
            promised: Volume::default(),
            accounts: HashMap::default(),
            parked: None,
            undelivered: 0,
            closed: None,
            ended: false,
            counts: Counts::default(),
            room_awaited: false,
            queued_since: None,
            in_hand_since: None,
        }
    }

    /// Whether there was none, and whether it expects a message.
    pub(super) fn open_account(&mut self, connection: ConnectionId, windows: &Windows) -> (bool, bool) {
        match self.accounts.entry(connection) {
            Entry::Occupied(account) => (false, account.get().expects()),
            Entry::Vacant(place) => {
                let account = place.insert(Account::new(windows));
                self.promised.add(account.promised());
                (true, account.expects())
            }
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
        let account = self.accounts.get_mut(&connection)?;
        self.promised.remove(account.promised());
        let result = change(account);
        self.promised.add(account.promised());
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
        let free = limit.minus(self.held).minus(self.promised);
        let more = self.change(done.link.id(), |account| account.handle(done.volume, free, windows))?;
        more.map(|more| (done.link, more))
    }

    /// Whether those who wait for room are to be told. While the loop goes on they are told when half is free, so that
    /// they and the loop do not wake each other for every few messages.
    pub(super) fn has_room(&mut self, limit: Volume, goes_on: bool) -> bool {
        let room = self.room_awaited && self.held.fits(if goes_on { limit.half() } else { limit });
        self.room_awaited &= !room;
        room
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

//! One connection to another environment, with what both sides tell each other about it.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use foldhash::HashMap;
use network_common::{ConnectionId, ErrorKind, TransportClient};
use tokio::runtime::Handle;

use crate::address::RpcAddress;
use crate::credit::Volume;
use crate::limits::Budget;
use crate::sync::{Mutex, MutexGuard, Notify, RwLock};
use crate::wire::{self, Recent, proto};

/// So many requests that the peer gave up are remembered until their turn comes. The oldest are forgotten first,
/// and then handled although nobody waits.
const MAX_GIVEN_UP: usize = 4096;

/// Bytes of notices that may wait for room in a connection's write queue.
const MAX_UNTOLD: usize = 4 << 20;

/// All connections of an environment.
pub(crate) struct Links {
    by_id: RwLock<HashMap<ConnectionId, Arc<Link>>>,
    /// Several where two addresses lead to one peer. They live as long as the connection, so that credit is not lost
    /// where refs come and go.
    senders: Mutex<HashMap<ConnectionId, Vec<Arc<dyn Sender>>>>,
    budget: Arc<Budget>,
    undelivered: AtomicU64,
    /// Bytes that an answer may have.
    max_message: usize,
    runtime: Handle,
}

/// Who of this environment sends over a connection.
pub(crate) trait Sender: Send + Sync {
    /// The peer takes so much more for `endpoint` over the connection.
    fn granted(&self, connection: ConnectionId, endpoint: &str, more: Volume);

    /// The connection has ended.
    fn disconnected(&self, connection: ConnectionId);
}

/// Who of this environment gets messages over a connection.
pub(crate) trait Receiver: Send + Sync {
    /// The connection has ended.
    fn disconnected(&self, connection: ConnectionId);
}

impl Links {
    pub(crate) fn new(budget: Budget, max_message: usize, runtime: Handle) -> Arc<Self> {
        let budget = Arc::new(budget);
        Arc::new(Self {
            by_id: RwLock::default(),
            senders: Mutex::default(),
            budget,
            undelivered: AtomicU64::new(0),
            max_message,
            runtime,
        })
    }

    /// What messages from the network may hold in this environment.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// A peer refused a one-way message.
    pub(crate) fn count_undelivered(&self) {
        self.undelivered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn undelivered(&self) -> u64 {
        self.undelivered.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, client: &TransportClient) -> Arc<Link> {
        let link = Link::new(client, self);
        self.by_id.write().insert(client.id(), Arc::clone(&link));
        link
    }

    /// The latest connection to the environment of that incarnation, if it is connected.
    pub(crate) fn of_incarnation(&self, incarnation: u64) -> Option<Arc<Link>> {
        let links = self.by_id.read();
        let live = links.values().filter(|link| link.incarnation() == incarnation && link.client.is_active());
        live.max_by_key(|link| link.id()).cloned()
    }

    pub(crate) fn get(&self, client: &TransportClient) -> Option<Arc<Link>> {
        self.by_id.read().get(&client.id()).cloned()
    }

    /// `sender` is told what the peer says of what it sends over `client`. False if that has ended already.
    pub(crate) fn add_sender(&self, client: &TransportClient, sender: Arc<dyn Sender>) -> bool {
        let mut senders = self.senders.lock();
        // Under the lock: a connection that ends from here on finds the entry.
        let active = client.is_active();
        if active {
            senders.entry(client.id()).or_default().push(sender);
        }
        active
    }

    pub(crate) fn granted(&self, client: &TransportClient, endpoint: &str, more: Volume) {
        let senders = self.senders.lock().get(&client.id()).cloned().unwrap_or_default();
        for sender in senders {
            sender.granted(client.id(), endpoint, more);
        }
    }

    /// Until every connection there is now has ended.
    pub(crate) async fn ended(&self) {
        let clients: Vec<_> = self.by_id.read().values().map(|link| link.client.clone()).collect();
        for client in clients {
            client.closed().await;
        }
    }

    pub(crate) fn remove(&self, client: &TransportClient) -> Option<Arc<Link>> {
        let senders = self.senders.lock().remove(&client.id()).unwrap_or_default();
        for sender in senders {
            sender.disconnected(client.id());
        }
        let link = self.by_id.write().remove(&client.id())?;
        let receivers = std::mem::take(&mut *link.receivers.lock());
        for receiver in receivers.iter().filter_map(Weak::upgrade) {
            receiver.disconnected(client.id());
        }
        // Nobody waits for answers over it any more.
        link.changed.notify_waiters();
        Some(link)
    }
}

/// One connection, whoever made it.
pub(crate) struct Link {
    client: TransportClient,
    socket: RpcAddress,
    /// Where the peer listens, once it has said so; with the text that said it, which every message repeats.
    told: OnceLock<(String, RpcAddress)>,
    /// Which run of the peer's environment it is; 0 until that has been told.
    incarnation: AtomicU64,
    /// What the latest requests began with. Only the task that reads the connection takes it.
    recent: Mutex<Recent>,
    /// Who has an account for it.
    receivers: Mutex<Vec<Weak<dyn Receiver>>>,
    given_up: Mutex<GivenUp>,
    /// How many there are, to look at without the lock.
    given_up_count: AtomicUsize,
    changed: Notify,
    untold: Mutex<Untold>,
    budget: Arc<Budget>,
    max_message: usize,
    runtime: Handle,
}

impl Link {
    fn new(client: &TransportClient, all: &Links) -> Arc<Self> {
        Arc::new(Self {
            client: client.clone(),
            socket: client.peer_addr().into(),
            told: OnceLock::new(),
            incarnation: AtomicU64::new(0),
            recent: Mutex::default(),
            receivers: Mutex::default(),
            given_up: Mutex::default(),
            given_up_count: AtomicUsize::new(0),
            changed: Notify::new(),
            untold: Mutex::default(),
            budget: Arc::clone(&all.budget),
            max_message: all.max_message,
            runtime: all.runtime.clone(),
        })
    }

    /// What messages from the network may hold in this environment.
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Bytes that an answer may have.
    pub(crate) fn max_message(&self) -> usize {
        self.max_message
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.client.id()
    }

    pub(crate) fn socket(&self) -> &RpcAddress {
        &self.socket
    }

    pub(crate) fn client(&self) -> &TransportClient {
        &self.client
    }

    /// What the latest requests began with.
    pub(crate) fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock()
    }

    /// Which run of the peer's environment it is; 0 if that has not been told.
    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::Relaxed)
    }

    /// A message has told it.
    pub(crate) fn set_incarnation(&self, incarnation: u64) {
        if self.incarnation() == 0 {
            self.incarnation.store(incarnation, Ordering::Relaxed);
        }
    }

    /// Where the peer listens, if it has said so.
    pub(crate) fn listens_at(&self) -> Option<&RpcAddress> {
        self.told.get().map(|(_, address)| address)
    }

    /// Who sent a message with `text` in its sender field, and whether it said so for the first time.
    pub(crate) fn sender_of(&self, text: &str) -> (RpcAddress, bool) {
        match self.told.get() {
            Some((told, address)) if told == text => return (address.clone(), false),
            _ if text.is_empty() => return (self.socket.clone(), false),
            _ => {}
        }
        let Ok(address) = text.parse::<RpcAddress>() else { return (self.socket.clone(), false) };
        let first = self.told.set((text.to_owned(), address.clone())).is_ok();
        (address, first)
    }

    /// `receiver` is to be told of the end of this connection.
    pub(crate) fn add_receiver(&self, receiver: Weak<dyn Receiver>) {
        let mut receivers = self.receivers.lock();
        // Endpoints may come and go during a connection's life.
        if receivers.len() == receivers.capacity() {
            receivers.retain(|receiver| receiver.strong_count() > 0);
        }
        receivers.push(receiver);
    }

    pub(crate) fn grant(self: &Arc<Self>, endpoint: &str, more: Volume) {
        let (messages, bytes) = (more.messages, more.bytes);
        self.tell(proto::notice::Notice::Credit(proto::Credit {
            endpoint: endpoint.to_owned(),
            messages,
            bytes,
        }));
    }

    /// Sends a notice, now or as soon as there is room for it: a credit that is lost would be missed for ever. A peer that
    /// lets too many of them wait does not read what it is sent, so its connection ends.
    pub(crate) fn tell(self: &Arc<Self>, notice: proto::notice::Notice) {
        let notice = wire::notice(notice);
        let mut untold = self.untold.lock();
        if untold.notices.is_empty() && self.is_sent(&notice) {
            return;
        }
        untold.bytes += notice.len();
        untold.notices.push_back(notice);
        if untold.bytes > MAX_UNTOLD {
            *untold = Untold::default();
            drop(untold);
            tracing::warn!(peer = %self.socket, "the peer does not read what it is sent: its connection is closed");
            self.client.close();
        } else if untold.notices.len() == 1 {
            drop(untold);
            self.runtime.spawn(Arc::clone(self).tell_later());
        }
    }

    async fn tell_later(self: Arc<Self>) {
        while self.client.ready().await.is_ok() {
            let mut untold = self.untold.lock();
            while untold.notices.front().is_some_and(|notice| self.is_sent(notice)) {
                let sent = untold.notices.pop_front();
                untold.bytes -= sent.map_or(0, |notice| notice.len());
            }
            if untold.notices.is_empty() {
                return;
            }
        }
    }

    /// False if there is no room for it. Where the connection has ended there is nothing more to tell.
    fn is_sent(&self, notice: &Bytes) -> bool {
        let sent = self.client.send(notice.clone());
        sent.map_or_else(|error| error.kind() != ErrorKind::Limit, |()| true)
    }

    /// The peer no longer waits for the answer to `request`.
    pub(crate) fn give_up(&self, request: i64) {
        let mut given_up = self.given_up.lock();
        given_up.add(request);
        self.given_up_count.store(given_up.requests.len(), Ordering::Release);
        drop(given_up);
        self.changed.notify_waiters();
    }

    /// Whether the asker of `request` still waits, as far as is known.
    pub(crate) fn waits(&self, request: i64) -> bool {
        self.client.is_active()
            && (self.given_up_count.load(Ordering::Acquire) == 0
                || !self.given_up.lock().requests.contains(&request))
    }

    /// `request` is answered, so it need not be remembered.
    pub(crate) fn forget(&self, request: i64) {
        if self.given_up_count.load(Ordering::Acquire) > 0 {
            let mut given_up = self.given_up.lock();
            given_up.requests.remove(&request);
            self.given_up_count.store(given_up.requests.len(), Ordering::Release);
        }
    }

    /// Until the asker of `request` no longer waits.
    pub(crate) async fn given_up(&self, request: i64) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            if !self.waits(request) {
                return;
            }
            changed.await;
        }
    }
}

/// Notices that wait, in order. While there are any, a task is at it.
#[derive(Default)]
struct Untold {
    notices: VecDeque<Bytes>,
    bytes: usize,
}

/// Requests that the peer gave up. One that had been answered when its notice came stays until the oldest are forgotten, so
/// there may be many, and every request is looked for.
#[derive(Default)]
struct GivenUp {
    requests: HashSet<i64>,
    /// In the order they were given up; also those that have been answered since.
    order: VecDeque<i64>,
}

impl GivenUp {
    fn add(&mut self, request: i64) {
        if !self.requests.insert(request) {
            return;
        }
        self.order.push_back(request);
        if self.order.len() > MAX_GIVEN_UP {
            let oldest = self.order.pop_front();
            oldest.map(|oldest| self.requests.remove(&oldest));
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("socket", &self.socket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_too_many_requests_that_were_given_up_are_forgotten() {
        let mut given_up = GivenUp::default();
        for request in 0..10_000 {
            given_up.add(request);
            given_up.add(request);
            if request % 2 == 0 {
                given_up.requests.remove(&request);
            }
        }
        assert_eq!(given_up.order.len(), MAX_GIVEN_UP);
        assert_eq!(given_up.requests.len(), MAX_GIVEN_UP / 2);
        assert!(given_up.requests.contains(&9_999) && !given_up.requests.contains(&1));
    }
}

//! The way to each other environment.

mod lane;
mod lanes;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::join_all;
use network_common::{ConnectionId, TransportClient, TransportClientFactory, TransportError};
use tokio::runtime::Handle;

use lanes::Lanes;

use crate::address::RpcAddress;
use crate::credit::Volume;
use crate::error::{ErrorKind, RpcError};
use crate::link::{Link, Links, Sender};
use crate::metrics::OutboxSnapshot;
use crate::sync::{Mutex, Notify};

/// All outboxes of an environment. Each lives as long as a ref that uses it, a message that waits in it, or its
/// connection, whose credit it knows. Only the first two keep this alive, and with it the connections.
pub(crate) struct Outboxes {
    boxes: Mutex<Boxes>,
    factory: TransportClientFactory,
    links: Arc<Links>,
    /// What may wait for one endpoint.
    limits: Volume,
    runtime: Handle,
}

struct Boxes {
    by_address: HashMap<RpcAddress, Weak<Outbox>>,
    by_connection: HashMap<ConnectionId, Weak<Outbox>>,
    /// Beyond this many the dead ones are looked for.
    prune_at: usize,
    stopped: bool,
}

impl Outboxes {
    pub(crate) fn new(
        factory: TransportClientFactory,
        links: Arc<Links>,
        limits: Volume,
        runtime: Handle,
    ) -> Arc<Self> {
        let boxes =
            Boxes { by_address: HashMap::new(), by_connection: HashMap::new(), prune_at: 16, stopped: false };
        Arc::new(Self { boxes: Mutex::new(boxes), factory, links, limits, runtime })
    }

    /// The one outbox to `address`.
    pub(crate) fn get(self: &Arc<Self>, address: &RpcAddress) -> Arc<Outbox> {
        let mut boxes = self.boxes.lock();
        if let Some(outbox) = boxes.by_address.get(address).and_then(Weak::upgrade) {
            return outbox;
        }
        let phase = if boxes.stopped { Phase::Stopped } else { Phase::Idle };
        let outbox = Arc::new_cyclic(|me| Outbox::new(me, address, &self.runtime, phase, false));
        if boxes.by_address.len() >= boxes.prune_at {
            boxes.by_address.retain(|_, outbox| outbox.strong_count() > 0);
            boxes.prune_at = 16.max(2 * boxes.by_address.len());
        }
        boxes.by_address.insert(address.clone(), Arc::downgrade(&outbox));
        outbox
    }

    /// The outbox that goes over `link` and nothing else: to an environment that does not listen.
    pub(crate) fn over(self: &Arc<Self>, link: &Link) -> Arc<Outbox> {
        let mut boxes = self.boxes.lock();
        let boxes = &mut *boxes;
        if let Some(outbox) = boxes.by_connection.get(&link.id()).and_then(Weak::upgrade) {
            return outbox;
        }
        let client = link.client();
        let phase = if boxes.stopped { Phase::Stopped } else { Phase::Connected(client.clone()) };
        let outbox = Arc::new_cyclic(|me| Outbox::new(me, link.socket(), &self.runtime, phase, true));
        // If the connection has ended meanwhile, that shows when something is sent.
        self.links.add_sender(client, Arc::clone(&outbox) as _);
        boxes.by_connection.retain(|_, outbox| outbox.strong_count() > 0);
        boxes.by_connection.insert(link.id(), Arc::downgrade(&outbox));
        outbox
    }

    /// The state of every outbox, by address.
    pub(crate) fn snapshot(&self) -> Vec<OutboxSnapshot> {
        let live: Vec<_> = {
            let boxes = self.boxes.lock();
            boxes.by_address.values().chain(boxes.by_connection.values()).filter_map(Weak::upgrade).collect()
        };
        let mut all: Vec<_> = live.iter().map(|outbox| outbox.snapshot()).collect();
        all.sort_by(|one, other| one.address.cmp(&other.address));
        all
    }

    /// Waits up to `limit` for what is queued to be sent, fails the rest, refuses what comes, and closes the
    /// connections. Tells how many messages were not sent.
    pub(crate) async fn stop(&self, limit: Duration) -> u64 {
        let live: Vec<_> = {
            let mut boxes = self.boxes.lock();
            boxes.stopped = true;
            let (by_address, by_connection) =
                (std::mem::take(&mut boxes.by_address), std::mem::take(&mut boxes.by_connection));
            let all = by_address.into_values().chain(by_connection.into_values());
            all.filter_map(|outbox| outbox.upgrade()).collect()
        };
        let all_sent = join_all(live.iter().map(|outbox| outbox.emptied()));
        let _ = tokio::time::timeout(limit, all_sent).await;
        let unsent = live.iter().map(|outbox| outbox.fail(Phase::Stopped, &outbox.dropped(), |_| true));
        let unsent = unsent.sum();
        self.factory.close();
        unsent
    }
}

/// The messages to one address: sent over its connection, or queued while there is none, or no credit.
///
/// One that waits for a connection is sent once it stands, in order. If it cannot be made, or ends, all that wait
/// fail and the next message tries anew (`rpc 5`). Nothing is ever sent twice.
pub(crate) struct Outbox {
    me: Weak<Self>,
    address: RpcAddress,
    runtime: Handle,
    /// It goes over one connection that the peer has made, and ends with it.
    bound: bool,
    state: Mutex<State>,
    /// Nothing waits any more.
    emptied: Notify,
}

struct State {
    phase: Phase,
    lanes: Lanes,
    /// A task waits for room in the connection's write queue, and goes on then.
    blocked: bool,
}

enum Phase {
    /// Never connected, or the connection failed.
    Idle,
    /// A task is at it; messages queue.
    Connecting,
    /// Callers send over the connection themselves, as their credit allows.
    Connected(TransportClient),
    /// The one connection there was has ended.
    Lost,
    Stopped,
}

impl Phase {
    fn connection(&self) -> Option<&TransportClient> {
        match self {
            Self::Connected(client) => Some(client),
            Self::Idle | Self::Connecting | Self::Lost | Self::Stopped => None,
        }
    }
}

impl Outbox {
    fn new(me: &Weak<Self>, address: &RpcAddress, runtime: &Handle, phase: Phase, bound: bool) -> Self {
        Self {
            me: me.clone(),
            address: address.clone(),
            runtime: runtime.clone(),
            bound,
            state: Mutex::new(State { phase, lanes: Lanes::default(), blocked: false }),
            emptied: Notify::new(),
        }
    }

    /// What comes after a connection.
    fn after_connection(&self) -> Phase {
        if self.bound { Phase::Lost } else { Phase::Idle }
    }

    /// The connection stands: sends what has queued.
    async fn connected(
        self: &Arc<Self>,
        client: TransportClient,
        links: &Links,
    ) -> Result<(), TransportError> {
        let told_of_its_end = links.add_sender(&client, Arc::clone(self) as _);
        {
            let mut state = self.state.lock();
            // One that ends from here on is found in the state.
            if told_of_its_end && client.is_active() {
                if matches!(state.phase, Phase::Connecting) {
                    state.phase = Phase::Connected(client);
                    self.pump(&mut state, None);
                }
                return Ok(());
            }
        }
        Err(client.closed().await)
    }

    /// Sends what credit allows, of all lanes or of one. Under the lock, so that nobody who finds a lane empty
    /// overtakes.
    fn pump(&self, state: &mut State, lane: Option<usize>) {
        let Some(client) = state.phase.connection() else { return };
        if state.blocked {
            return;
        }
        let open = match lane {
            Some(lane) => state.lanes.pump_one(lane, client),
            None => state.lanes.pump(client),
        };
        if !state.lanes.waits() {
            self.emptied.notify_waiters();
        }
        if open {
            return;
        }
        state.blocked = true;
        let (client, me) = (client.clone(), self.me.clone());
        self.runtime.spawn(async move {
            // If the connection ends instead, what waits is failed by that.
            let _ = client.ready().await;
            if let Some(outbox) = me.upgrade() {
                let mut state = outbox.state.lock();
                state.blocked = false;
                outbox.pump(&mut state, None);
            }
        });
    }

    /// Goes over to `next` from any phase that is `from`, and fails all that waits; tells how much that was.
    fn fail(&self, next: Phase, error: &RpcError, from: impl FnOnce(&Phase) -> bool) -> u64 {
        let mut state = self.state.lock();
        if !from(&state.phase) {
            return 0;
        }
        state.phase = next;
        let unsent = state.lanes.reset();
        drop(state);
        self.emptied.notify_waiters();
        unsent.fail(error)
    }

    /// Until nothing waits to be sent.
    async fn emptied(&self) {
        let mut emptied = std::pin::pin!(self.emptied.notified());
        emptied.as_mut().enable();
        if self.state.lock().lanes.waits() {
            emptied.await;
        }
    }

    fn snapshot(&self) -> OutboxSnapshot {
        let state = self.state.lock();
        let Volume { messages, bytes } = state.lanes.volume();
        let connected = state.phase.connection().is_some_and(TransportClient::is_active);
        OutboxSnapshot {
            address: self.address.clone(),
            connected,
            endpoints: state.lanes.count() as u64,
            queued: messages,
            queued_bytes: bytes,
        }
    }

    fn closed(&self) -> RpcError {
        let text = format!("Connection from {} closed", self.address);
        RpcError::new(ErrorKind::Network, text).with_peer(&self.address)
    }

    fn dropped(&self) -> RpcError {
        let text = format!(
            "Message to {} is dropped because Outbox is stopped: RpcEnv already stopped.",
            self.address
        );
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }
}

impl Sender for Outbox {
    fn granted(&self, connection: ConnectionId, endpoint: &str, more: Volume) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        // Credit of a connection that is being replaced says nothing about its successor.
        let Some(client) = state.phase.connection().filter(|client| client.id() == connection) else {
            return;
        };
        if let Some(lane) = state.lanes.granted(endpoint, more, client) {
            self.pump(state, Some(lane));
        }
    }

    fn disconnected(&self, connection: ConnectionId) {
        self.fail(self.after_connection(), &self.closed(), |phase| {
            phase.connection().is_some_and(|client| client.id() == connection)
        });
    }
}

/// Keeps the promise that an outbox is connecting only as long as a task is at it.
struct Connecting(Option<(Arc<Outboxes>, Arc<Outbox>)>);

impl Connecting {
    /// Starts the task.
    fn start(all: &Arc<Outboxes>, outbox: &Arc<Outbox>) {
        let connecting = Self(Some((Arc::clone(all), Arc::clone(outbox))));
        outbox.runtime.spawn(connecting.run());
    }

    async fn run(mut self) {
        let Some((all, outbox)) = &self.0 else { return };
        let peer = (outbox.address.bare_host(), outbox.address.port());
        let outcome = match all.factory.create_client(peer).await {
            Ok(client) => outbox.connected(client, &all.links).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            let error = RpcError::from_transport(error, &outbox.address);
            outbox.fail(Phase::Idle, &error, |phase| matches!(phase, Phase::Connecting));
        }
        // Done: the outbox may already be connecting again, with another task.
        self.0 = None;
    }
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some((_, outbox)) = self.0.take() {
            let text = format!("the runtime shut down before {} was connected", outbox.address);
            let error = RpcError::new(ErrorKind::Stopped, text).with_peer(&outbox.address);
            outbox.fail(Phase::Idle, &error, |phase| matches!(phase, Phase::Connecting));
        }
    }
}

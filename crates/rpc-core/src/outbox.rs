//! The queue to one other environment, and the connection it makes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use network_common::{TransportClient, TransportClientFactory};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};
use crate::post::{Dispatched, RemoteAnswer, Wire};

/// All outboxes of an environment. Each lives as long as a ref that uses it.
pub(crate) struct Outboxes {
    boxes: Mutex<Boxes>,
    factory: TransportClientFactory,
    runtime: Handle,
}

struct Boxes {
    by_address: HashMap<RpcAddress, Weak<Outbox>>,
    /// Beyond this many the dead ones are looked for.
    prune_at: usize,
    stopped: bool,
}

impl Outboxes {
    pub(crate) fn new(factory: TransportClientFactory, runtime: Handle) -> Arc<Self> {
        let boxes = Boxes { by_address: HashMap::new(), prune_at: 16, stopped: false };
        Arc::new(Self { boxes: Mutex::new(boxes), factory, runtime })
    }

    /// The one outbox to `address`.
    pub(crate) fn get(self: &Arc<Self>, address: &RpcAddress) -> Arc<Outbox> {
        let mut boxes = self.boxes.lock();
        if let Some(outbox) = boxes.by_address.get(address).and_then(Weak::upgrade) {
            return outbox;
        }
        let phase = if boxes.stopped { Phase::Stopped } else { Phase::Idle };
        let outbox = Arc::new_cyclic(|me| Outbox {
            me: me.clone(),
            address: address.clone(),
            all: Arc::clone(self),
            state: Mutex::new(State { phase, queue: VecDeque::new() }),
        });
        if boxes.by_address.len() >= boxes.prune_at {
            boxes.by_address.retain(|_, outbox| outbox.strong_count() > 0);
            boxes.prune_at = 16.max(2 * boxes.by_address.len());
        }
        boxes.by_address.insert(address.clone(), Arc::downgrade(&outbox));
        outbox
    }

    /// Fails what is queued, refuses what comes, and closes the connections.
    pub(crate) fn stop(&self) {
        let live: Vec<_> = {
            let mut boxes = self.boxes.lock();
            boxes.stopped = true;
            boxes.by_address.drain().filter_map(|(_, outbox)| outbox.upgrade()).collect()
        };
        for outbox in live {
            outbox.stop();
        }
        self.factory.close();
    }
}

/// The messages to one address: sent over its connection, or queued while there is none.
///
/// One that waits for a connection is sent once it stands, in order. If it cannot be made, all that wait fail and
/// the next message tries anew (`rpc 5`). Nothing is ever sent twice.
pub(crate) struct Outbox {
    me: Weak<Self>,
    address: RpcAddress,
    all: Arc<Outboxes>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    queue: VecDeque<Queued>,
}

enum Phase {
    /// Never connected, or the connection failed.
    Idle,
    /// A task connects or sends what is queued; new messages queue behind.
    Busy,
    /// Nothing is queued: callers send over the connection themselves.
    Connected(TransportClient),
    Stopped,
}

struct Queued {
    envelope: Bytes,
    /// None for a one-way message.
    asker: Option<oneshot::Sender<Dispatched>>,
}

impl Outbox {
    /// The connection to use now; without one, `queued` waits for it.
    fn route(&self, queued: impl FnOnce() -> Queued) -> Result<Option<TransportClient>, RpcError> {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Connected(client) if client.is_active() => return Ok(Some(client.clone())),
            Phase::Stopped => return Err(self.dropped()),
            Phase::Busy => state.queue.push_back(queued()),
            Phase::Idle | Phase::Connected(_) => {
                state.phase = Phase::Busy;
                state.queue.push_back(queued());
                drop(state);
                if let Some(me) = self.me.upgrade() {
                    self.all.runtime.spawn(connect(Busy(Some(me))));
                }
            }
        }
        Ok(None)
    }

    /// Sends what is queued, and leaves the connection to the callers when there is nothing more.
    async fn drain(&self, client: TransportClient) -> Result<(), network_common::TransportError> {
        loop {
            let batch = {
                let mut state = self.state.lock();
                if !matches!(state.phase, Phase::Busy) {
                    return Ok(());
                }
                if state.queue.is_empty() {
                    state.queue = VecDeque::new();
                    state.phase = Phase::Connected(client);
                    return Ok(());
                }
                std::mem::take(&mut state.queue)
            };
            let mut batch = batch.into_iter();
            while let Some(queued) = batch.next() {
                if let Err(error) = self.forward(&client, queued).await {
                    let failure = RpcError::from_transport(error.clone(), &self.address);
                    batch.for_each(|queued| queued.fail(&failure));
                    return Err(error);
                }
            }
        }
    }

    async fn forward(
        &self,
        client: &TransportClient,
        queued: Queued,
    ) -> Result<(), network_common::TransportError> {
        if let Err(error) = client.ready().await {
            queued.fail(&RpcError::from_transport(error.clone(), &self.address));
            return Err(error);
        }
        match queued {
            // The asker has given up meanwhile.
            Queued { asker: Some(asker), .. } if asker.is_closed() => {}
            Queued { asker: Some(asker), envelope } => {
                let _ = asker.send(Ok(client.send_rpc(envelope)));
            }
            Queued { asker: None, envelope } => {
                if let Err(error) = client.send(envelope) {
                    lost(&RpcError::from_transport(error.clone(), &self.address));
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn fail(&self, error: &RpcError) {
        let failed = {
            let mut state = self.state.lock();
            if matches!(state.phase, Phase::Busy) {
                state.phase = Phase::Idle;
            }
            std::mem::take(&mut state.queue)
        };
        failed.into_iter().for_each(|queued| queued.fail(error));
    }

    fn stop(&self) {
        let failed = {
            let mut state = self.state.lock();
            state.phase = Phase::Stopped;
            std::mem::take(&mut state.queue)
        };
        failed.into_iter().for_each(|queued| queued.fail(&self.dropped()));
    }

    fn dropped(&self) -> RpcError {
        let text = format!(
            "Message to {} is dropped because Outbox is stopped: RpcEnv already stopped.",
            self.address
        );
        RpcError::new(ErrorKind::Stopped, text).with_peer(&self.address)
    }
}

/// Keeps the promise that an outbox is busy only as long as a task is at it.
struct Busy(Option<Arc<Outbox>>);

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(outbox) = self.0.take() {
            let text = format!("the runtime shut down before {} was connected", outbox.address);
            outbox.fail(&RpcError::new(ErrorKind::Stopped, text).with_peer(&outbox.address));
        }
    }
}

async fn connect(mut busy: Busy) {
    let Some(outbox) = &busy.0 else { return };
    let peer = (outbox.address.bare_host(), outbox.address.port());
    let outcome = match outbox.all.factory.create_client(peer).await {
        Ok(client) => outbox.drain(client).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        outbox.fail(&RpcError::from_transport(error, &outbox.address));
    }
    // Done: the outbox may already be busy again, with another task.
    busy.0 = None;
}

impl Queued {
    fn fail(self, error: &RpcError) {
        match self.asker {
            Some(asker) => {
                let _ = asker.send(Err(error.clone()));
            }
            None => lost(error),
        }
    }
}

fn lost(error: &RpcError) {
    tracing::warn!(%error, "a one-way message was lost");
}

impl Wire for Outbox {
    fn send(&self, envelope: Bytes) -> Result<(), RpcError> {
        match self.route(|| Queued { envelope: envelope.clone(), asker: None })? {
            Some(client) => client.send(envelope).map_err(|e| RpcError::from_transport(e, &self.address)),
            None => Ok(()),
        }
    }

    fn ask(&self, envelope: Bytes) -> RemoteAnswer {
        let mut dispatched = None;
        let routed = self.route(|| {
            let (asker, receiver) = oneshot::channel();
            dispatched = Some(receiver);
            Queued { envelope: envelope.clone(), asker: Some(asker) }
        });
        let peer = self.address.clone();
        match (routed, dispatched) {
            (Ok(Some(client)), _) => RemoteAnswer::sent(client.send_rpc(envelope), peer),
            (Ok(None), Some(dispatched)) => RemoteAnswer::queued(dispatched, peer),
            (Ok(None), None) => RemoteAnswer::refused(self.dropped(), peer),
            (Err(error), _) => RemoteAnswer::refused(error, peer),
        }
    }
}

//! The registry of an environment's endpoints. It starts and stops their loops, and finds the inbox
//! of a message by the name of its endpoint.

mod rpc_handler;
mod stop;
mod verifier;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_task::FallibleTask;
use network_common::is_simulated;
pub(crate) use rpc_handler::EnvRpcHandler;
pub(crate) use stop::StoppingEndpoints;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;
pub(crate) use verifier::EndpointVerifier;

use crate::address::RpcEndpointAddress;
use crate::ask::ActorId;
use crate::endpoint::{EndpointContext, EndpointOptions, RpcEndpointRef, RpcMessage};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::{ConnectionEvent, ErasedInbox, Inbox, StopCause};
use crate::isolated_executor::IsolatedExecutor;
use crate::limits::ByteLimit;
use crate::message_loop::{IntoEndpoint, LoopContext};
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;
use crate::peer_text::peer_name;
use crate::sync::RwLock;

/// The number of bytes that the budget counts for one event in one queue.
const QUEUED_EVENT_BYTES: u64 = 256;

/// The endpoints of one environment (Spark's `Dispatcher`).
pub(crate) struct Dispatcher {
    state: RwLock<DispatcherState>,
    runtime: Handle,
    /// The loops of all endpoints, including those that are stopping.
    loops: TaskTracker,
    budget: Arc<ByteLimit>,
}

#[derive(Default)]
struct DispatcherState {
    /// The registered endpoints, by name.
    endpoints: BTreeMap<Arc<str>, Registration>,
    /// Endpoints that are no longer registered and whose loop has not ended.
    stopping: Vec<Registration>,
    is_stopped: bool,
}

/// One endpoint, from its set-up until its loop has ended.
#[derive(Clone)]
struct Registration {
    inbox: Arc<dyn ErasedInbox>,
    /// The task of the loop. Unset until it is spawned, which is after the registration.
    task: Arc<OnceLock<AbortHandle>>,
    /// Is true if the endpoint receives connection events.
    with_events: bool,
}

impl Registration {
    /// Returns whether the loop has ended.
    fn has_ended(&self) -> bool {
        self.task.get().is_some_and(AbortHandle::is_finished)
    }
}

/// Returns the error of an environment that has been shut down (Spark's `RpcEnvStoppedException`).
fn env_stopped_error() -> RpcError {
    RpcError::new(ErrorKind::Stopped, "RpcEnv already stopped.")
}

impl Dispatcher {
    /// `budget` counts the bytes of queued events.
    pub(crate) fn new(runtime: Handle, budget: Arc<ByteLimit>) -> Self {
        Self { state: RwLock::default(), runtime, loops: TaskTracker::new(), budget }
    }

    /// Registers `endpoint` under the name of `inbox`, and starts its loop.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointExists`] if the name is in use, [`ErrorKind::Stopped`] after
    /// [`begin_stop`](Self::begin_stop) or the end of the runtime, [`ErrorKind::Config`] if the threads of an isolated
    /// endpoint cannot be started.
    pub(crate) fn register<K, E: IntoEndpoint<K>>(
        &self,
        endpoint: E,
        inbox: Arc<Inbox<E::Message>>,
        options: &EndpointOptions,
        env: Arc<dyn Any + Send + Sync>,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let executor = self.start_executor(inbox.address(), options.isolated, E::IS_SERIAL)?;
        let endpoint_ref = inbox.make_ref();
        let task = Arc::new(OnceLock::new());
        let token = {
            let mut state = self.state.write();
            if state.is_stopped {
                return Err(RpcError::new(ErrorKind::Stopped, "RpcEnv has been stopped"));
            }
            let name = inbox.address().shared_name();
            if state.endpoints.contains_key(&name) {
                let text = format!("There is already an RpcEndpoint called {name}");
                return Err(RpcError::new(ErrorKind::EndpointExists, text));
            }
            let (inbox, task) = (Arc::clone(&inbox) as _, Arc::clone(&task));
            let with_events = options.connection_events;
            state.endpoints.insert(name, Registration { inbox, task, with_events });
            // Under the lock, so that a stop that follows also waits for this loop.
            self.loops.token()
        };
        // Without the lock: a runtime that has shut down drops the endpoint at once.
        let cx = EndpointContext::new(endpoint_ref.clone(), env);
        let context = LoopContext::new(Arc::clone(&inbox), cx, executor.clone());
        let endpoint_loop = endpoint.run(context);
        let spawned = match executor {
            None => self.loops.spawn_on(endpoint_loop, &self.runtime),
            Some(executor) => {
                let guard = FailOnDrop(Arc::clone(&inbox));
                let isolated = guard.wait_for(executor.spawn(endpoint_loop));
                self.loops.spawn_on(isolated, &self.runtime)
            }
        };
        let _ = task.set(spawned.abort_handle());
        drop(token);
        if inbox.is_abandoned() {
            self.unregister(inbox.address().name(), inbox.id());
            let text = "RpcEnv already stopped: its tokio runtime has shut down";
            return Err(RpcError::new(ErrorKind::Stopped, text));
        }
        Ok(endpoint_ref)
    }

    /// Starts the threads of an isolated endpoint, if `count` is given.
    fn start_executor(
        &self,
        address: &RpcEndpointAddress,
        count: Option<usize>,
        is_serial: bool,
    ) -> Result<Option<IsolatedExecutor>, RpcError> {
        let Some(count) = count else { return Ok(None) };
        let config_error = |reason| {
            RpcError::new(ErrorKind::Config, format!("{address}: isolated({count}): {reason}"))
        };
        match count {
            0 => Err(config_error("an isolated endpoint needs a thread")),
            2.. if is_serial => Err(config_error(
                "a ThreadSafeRpcEndpoint handles one message at a time, so it uses 1 thread",
            )),
            // Everything of a simulation runs on its thread.
            _ if is_simulated() => Ok(None),
            _ => IsolatedExecutor::start(
                &format!("dispatcher-{}", address.name()),
                count,
                &self.runtime,
            )
            .map(Some)
            .map_err(|error| config_error("the threads cannot be started").with_source(error)),
        }
    }

    /// Removes the endpoint `id`, if it is registered under `name`. It stops after its queued
    /// messages.
    ///
    /// Another endpoint may be registered under the name at once.
    pub(crate) fn unregister(&self, name: &str, id: ActorId) {
        let (removed, _ended) = {
            let mut state = self.state.write();
            let (ended, stopping) =
                std::mem::take(&mut state.stopping).into_iter().partition(Registration::has_ended);
            state.stopping = stopping;
            let is_registered =
                state.endpoints.get(name).is_some_and(|entry| entry.inbox.id() == id);
            let removed = if is_registered { state.endpoints.remove(name) } else { None };
            state.stopping.extend(removed.clone());
            let ended: Vec<Registration> = ended;
            (removed, ended)
        };
        if let Some(entry) = removed {
            entry.inbox.stop(StopCause::Endpoint);
        }
    }

    /// Returns the inbox of a local endpoint.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointNotFound`] if the name is not registered,
    /// [`ErrorKind::ServiceMismatch`] if the endpoint does not receive messages of type `M`,
    /// [`ErrorKind::Stopped`] after [`begin_stop`](Self::begin_stop).
    pub(crate) fn inbox<M: RpcMessage>(
        &self,
        address: &RpcEndpointAddress,
    ) -> Result<Arc<Inbox<M>>, RpcError> {
        let inbox = self.get(address.name())?.ok_or_else(|| endpoint_not_found_error(address))?;
        let received = inbox.message_type();
        (inbox as Arc<dyn Any + Send + Sync>).downcast().map_err(|_| {
            let requested = std::any::type_name::<M>();
            let text = format!(
                "the endpoint {address} receives {received}, not {requested} (`narrow` makes a ref \
                 to a part of a message type)"
            );
            RpcError::new(ErrorKind::ServiceMismatch, text).with_peer(address)
        })
    }

    /// Returns the services of the endpoint `name`, or `None` if there is no such endpoint.
    pub(crate) fn services(&self, name: &str) -> Option<&'static [&'static str]> {
        self.get(name).ok().flatten().map(|inbox| inbox.services())
    }

    /// Returns the inbox of the endpoint `name`, for messages from the network.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointNotFound`] if the name is not registered, [`ErrorKind::Stopped`] after
    /// [`begin_stop`](Self::begin_stop).
    pub(crate) fn target(&self, name: &str) -> Result<Arc<dyn RouteTarget>, RpcError> {
        let not_found = || {
            RpcError::new(
                ErrorKind::EndpointNotFound,
                format!("Could not find {}.", peer_name(name)),
            )
        };
        Ok(self.get(name)?.ok_or_else(not_found)?)
    }

    /// Returns the state of every endpoint, sorted by name.
    pub(crate) fn snapshot(&self) -> Vec<EndpointSnapshot> {
        let entries: Vec<_> = self.state.read().endpoints.values().cloned().collect();
        let mut all: Vec<_> = entries.iter().map(|entry| entry.inbox.snapshot()).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Posts a connection event to all endpoints that receive such events.
    ///
    /// Its bytes count in the budget until the last endpoint has handled it. An undelivered-event
    /// over the budget is discarded, because a peer can cause any number of them.
    pub(crate) fn post_to_all(&self, event: &ConnectionEvent) {
        // Posted without the lock, because it wakes the loops.
        let inboxes: Vec<_> = {
            let state = self.state.read();
            let with_events = state.endpoints.values().filter(|entry| entry.with_events);
            // A shutdown closes all connections, which endpoints need no events of.
            let with_events = with_events.filter(|_| !state.is_stopped);
            with_events.map(|entry| Arc::clone(&entry.inbox)).collect()
        };
        let bytes = event.bytes() + QUEUED_EVENT_BYTES * inboxes.len() as u64;
        let reserved = match event {
            ConnectionEvent::Undelivered(..) => ByteLimit::try_hold(&self.budget, bytes),
            ConnectionEvent::Connected(_)
            | ConnectionEvent::Disconnected(_)
            | ConnectionEvent::NetworkError(..) => Some(ByteLimit::hold(&self.budget, bytes)),
        };
        let Some(reserved) = reserved.map(Arc::new) else { return };
        inboxes.iter().for_each(|inbox| inbox.post_event(event.clone(), Arc::clone(&reserved)));
    }

    fn get(&self, name: &str) -> Result<Option<Arc<dyn ErasedInbox>>, RpcError> {
        let state = self.state.read();
        match state.endpoints.get(name) {
            Some(entry) => Ok(Some(Arc::clone(&entry.inbox))),
            None if state.is_stopped => Err(env_stopped_error()),
            None => Ok(None),
        }
    }
}

/// Stops the verifier, whose loop would otherwise never end. All other endpoints own their
/// environment, so they have ended when the dispatcher is dropped.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// Ties an isolated endpoint to the environment's runtime.
///
/// When the runtime shuts down and drops it, it fails the queued messages, which ends the loop.
struct FailOnDrop<M>(Arc<Inbox<M>>);

impl<M> FailOnDrop<M> {
    /// Waits until the loop has ended, also if a destructor panicked in it.
    async fn wait_for(self, endpoint_loop: FallibleTask<()>) {
        let _ = endpoint_loop.await;
    }
}

impl<M> Drop for FailOnDrop<M> {
    fn drop(&mut self) {
        self.0.close_and_fail();
    }
}

/// Returns the error of a local lookup without success.
pub(crate) fn endpoint_not_found_error(address: &RpcEndpointAddress) -> RpcError {
    RpcError::new(ErrorKind::EndpointNotFound, format!("Cannot find endpoint: {address}"))
        .with_peer(address)
}

#[cfg(test)]
#[path = "dispatcher_tests.rs"]
mod tests;

//! The registry of an environment's endpoints, and the way of every message to one of them.

mod rpc_handler;
mod stop;
mod verifier;

use std::any::Any;
use std::sync::Arc;

use async_task::FallibleTask;
use foldhash::HashMap;
pub(crate) use rpc_handler::EnvRpcHandler;
pub(crate) use stop::Stopping;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::task::TaskTracker;
pub(crate) use verifier::EndpointVerifier;

use crate::address::RpcEndpointAddress;
use crate::endpoint::EndpointContext;
use crate::endpoint::EndpointOptions;
use crate::endpoint::RpcEndpointRef;
use crate::endpoint::RpcMessage;
use crate::error::{ErrorKind, RpcError};
use crate::inbox::{ConnectionEvent, ErasedInbox, Inbox, StopCause};
use crate::isolated_executor::IsolatedExecutor;
use crate::message_loop::{IntoEndpoint, LoopContext};
use crate::metrics::EndpointSnapshot;
use crate::peer::RouteTarget;
use crate::sync::RwLock;

pub(crate) struct Dispatcher {
    state: RwLock<DispatcherState>,
    runtime: Handle,
    /// The loops of all endpoints, also of those that are no longer registered but not yet done.
    loops: TaskTracker,
}

#[derive(Default)]
struct DispatcherState {
    /// The registered endpoints, by name.
    endpoints: HashMap<Arc<str>, Registration>,
    /// Those that are no longer registered and not yet done.
    leaving: Vec<Registration>,
    stopped: bool,
}

#[derive(Clone)]
struct Registration {
    inbox: Arc<dyn ErasedInbox>,
    task: AbortHandle,
    connection_events: bool,
}

pub(crate) fn env_stopped() -> RpcError {
    RpcError::new(ErrorKind::Stopped, "RpcEnv already stopped.")
}

impl Dispatcher {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { state: RwLock::default(), runtime, loops: TaskTracker::new() }
    }

    /// Registers `endpoint` under the name that `inbox` has, and starts its loop.
    pub(crate) fn register<K, E: IntoEndpoint<K>>(
        &self,
        endpoint: E,
        inbox: Arc<Inbox<E::Message>>,
        options: &EndpointOptions,
        env: Arc<dyn Any + Send + Sync>,
    ) -> Result<RpcEndpointRef<E::Message>, RpcError> {
        let threads = self.threads(inbox.address(), options.isolated, E::IS_SERIAL)?;
        let endpoint_ref = inbox.make_ref();
        {
            let mut state = self.state.write();
            if state.stopped {
                return Err(RpcError::new(ErrorKind::Stopped, "RpcEnv has been stopped"));
            }
            let name = inbox.address().shared_name();
            if state.endpoints.contains_key(&name) {
                let text = format!("There is already an RpcEndpoint called {name}");
                return Err(RpcError::new(ErrorKind::EndpointExists, text));
            }
            // Under the lock, so that a stop that follows waits for this loop too.
            let cx = EndpointContext::new(endpoint_ref.clone(), env);
            let life = endpoint.run(LoopContext::new(Arc::clone(&inbox), cx, threads.clone()));
            let task = match threads {
                None => self.loops.spawn_on(life, &self.runtime),
                Some(threads) => {
                    let tie = FailOnDrop(Arc::clone(&inbox));
                    self.loops.spawn_on(tie.with(threads.spawn(life)), &self.runtime)
                }
            };
            let (task, connection_events) = (task.abort_handle(), options.connection_events);
            state.endpoints.insert(name, Registration { inbox, task, connection_events });
        }
        Ok(endpoint_ref)
    }

    fn threads(
        &self,
        address: &RpcEndpointAddress,
        count: Option<usize>,
        one_at_a_time: bool,
    ) -> Result<Option<IsolatedExecutor>, RpcError> {
        let Some(count) = count else { return Ok(None) };
        let refuse =
            |why| RpcError::new(ErrorKind::Config, format!("{address}: isolated({count}): {why}"));
        match count {
            0 => Err(refuse("an isolated endpoint needs a thread".to_owned())),
            2.. if one_at_a_time => Err(refuse(
                "a ThreadSafeRpcEndpoint handles one message at a time, so it takes 1 thread"
                    .to_owned(),
            )),
            _ => IsolatedExecutor::start(
                &format!("dispatcher-{}", address.name()),
                count,
                &self.runtime,
            )
            .map(Some)
            .map_err(|e| refuse(format!("the threads cannot be started: {e}")).with_source(e)),
        }
    }

    /// Frees the name at once; the endpoint handles what is queued and then stops. Nothing if there
    /// is none.
    pub(crate) fn unregister(&self, name: &str) {
        let removed = {
            let mut state = self.state.write();
            state.leaving.retain(|entry| !entry.task.is_finished());
            let removed = state.endpoints.remove(name);
            state.leaving.extend(removed.clone());
            removed
        };
        if let Some(entry) = removed {
            entry.inbox.stop(StopCause::Endpoint);
        }
    }

    /// The inbox of `address`, if it takes messages of type `M`.
    pub(crate) fn inbox<M: RpcMessage>(
        &self,
        address: &RpcEndpointAddress,
    ) -> Result<Arc<Inbox<M>>, RpcError> {
        let inbox = self.get(address.name())?.ok_or_else(|| endpoint_not_found(address))?;
        let name = inbox.message_type();
        (inbox as Arc<dyn Any + Send + Sync>).downcast().map_err(|_| {
            let text = format!(
                "the endpoint {address} receives {name}, not {}; where that is a part of it, `narrow` its ref",
                std::any::type_name::<M>()
            );
            RpcError::new(ErrorKind::ServiceMismatch, text).with_peer(address)
        })
    }

    /// The services of the endpoint `name`; none if there is no such endpoint.
    pub(crate) fn services(&self, name: &str) -> Option<&'static [&'static str]> {
        self.get(name).ok().flatten().map(|inbox| inbox.services())
    }

    /// The inbox of the endpoint `name`, for messages from the network.
    pub(crate) fn target(&self, name: &str) -> Result<Arc<dyn RouteTarget>, RpcError> {
        let not_found =
            || RpcError::new(ErrorKind::EndpointNotFound, format!("Could not find {name:.200}."));
        Ok(self.get(name)?.ok_or_else(not_found)?)
    }

    /// The state of every endpoint, by name.
    pub(crate) fn snapshot(&self) -> Vec<EndpointSnapshot> {
        let entries: Vec<_> = self.state.read().endpoints.values().cloned().collect();
        let mut all: Vec<_> = entries.iter().map(|entry| entry.inbox.snapshot()).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    pub(crate) fn post_to_all(&self, event: &ConnectionEvent) {
        let state = self.state.read();
        // Nobody is told of connections that end because all does.
        if !state.stopped {
            let told = state.endpoints.values().filter(|entry| entry.connection_events);
            told.for_each(|entry| entry.inbox.post_event(event.clone()));
        }
    }

    fn get(&self, name: &str) -> Result<Option<Arc<dyn ErasedInbox>>, RpcError> {
        let state = self.state.read();
        match state.endpoints.get(name) {
            Some(entry) => Ok(Some(Arc::clone(&entry.inbox))),
            None if state.stopped => Err(env_stopped()),
            None => Ok(None),
        }
    }
}

/// Only endpoints that do not hold their environment can be left: the verifier, whose loop would
/// wait for ever.
impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// Keeps an isolated endpoint to the runtime: dropped with it, it fails what waits in the inbox and
/// ends the loop.
struct FailOnDrop<M>(Arc<Inbox<M>>);

impl<M> FailOnDrop<M> {
    async fn with(self, life: FallibleTask<()>) {
        // The loop tells by ending that all is done; also when a destructor panicked in it.
        let _ = life.await;
    }
}

impl<M> Drop for FailOnDrop<M> {
    fn drop(&mut self) {
        self.0.close_and_fail();
    }
}

pub(crate) fn endpoint_not_found(address: &RpcEndpointAddress) -> RpcError {
    RpcError::new(ErrorKind::EndpointNotFound, format!("Cannot find endpoint: {address}"))
        .with_peer(address)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::address::RpcAddress;
    use crate::ask::{AskResources, EndpointInfo};
    use crate::conf::RpcConf;
    use crate::endpoint::ThreadSafeRpcEndpoint;
    use crate::trace::Tracer;

    struct Nothing;
    impl RpcMessage for Nothing {}

    struct Watch(mpsc::UnboundedSender<String>);

    impl ThreadSafeRpcEndpoint for Watch {
        type Message = Nothing;
        async fn receive(
            &mut self,
            _: Nothing,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            Ok(())
        }
        async fn on_connected(
            &mut self,
            from: RpcAddress,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            self.0.send(format!("connected {from}")).map_err(RpcError::application)
        }
        async fn on_disconnected(
            &mut self,
            from: RpcAddress,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            self.0.send(format!("disconnected {from}")).map_err(RpcError::application)
        }
        async fn on_network_error(
            &mut self,
            error: RpcError,
            from: RpcAddress,
            _: &EndpointContext<Nothing>,
        ) -> Result<(), RpcError> {
            self.0.send(format!("{error} {from}")).map_err(RpcError::application)
        }
    }

    /// Has two endpoints told of `event`, then stops them, then tells it again. What each was told.
    async fn told_of(event: ConnectionEvent) -> [Vec<String>; 2] {
        let runtime = Handle::current();
        let asks =
            AskResources::new(RpcConf::new().ask().unwrap(), Tracer::default(), runtime.clone());
        let dispatcher = Dispatcher::new(runtime);
        let received = ["a", "b"].map(|name| {
            let (told, events) = mpsc::unbounded_channel();
            let address = RpcEndpointAddress::new(None, name).unwrap();
            let about = EndpointInfo::new(address, Arc::clone(&asks), 1);
            let inbox = Inbox::new(about, Arc::new(RpcConf::new().inbox().unwrap()));
            dispatcher.register(Watch(told), inbox, &EndpointOptions::new(), Arc::new(())).unwrap();
            events
        });
        dispatcher.post_to_all(&event);
        let stopping = dispatcher.begin_stop();
        dispatcher.finish_stop(stopping, std::time::Duration::from_secs(10)).await;
        dispatcher.post_to_all(&event);
        received.map(|mut events| std::iter::from_fn(|| events.try_recv().ok()).collect())
    }

    #[tokio::test]
    async fn inb_04_each_endpoint_is_told_of_a_connection_once() {
        let told = told_of(ConnectionEvent::Connected(RpcAddress::new("peer", 1))).await;
        assert_eq!(told, [["connected peer:1"], ["connected peer:1"]]);
    }

    #[tokio::test]
    async fn inb_05_each_endpoint_is_told_of_a_connections_end_once() {
        let told = told_of(ConnectionEvent::Disconnected(RpcAddress::new("peer", 1))).await;
        assert_eq!(told, [["disconnected peer:1"], ["disconnected peer:1"]]);
    }

    #[tokio::test]
    async fn inb_06_each_endpoint_is_told_of_a_network_error_once() {
        let error = RpcError::new(ErrorKind::Network, "reset");
        let told = told_of(ConnectionEvent::NetworkError(error, RpcAddress::new("peer", 1))).await;
        assert_eq!(told, [["reset peer:1"], ["reset peer:1"]]);
    }
}

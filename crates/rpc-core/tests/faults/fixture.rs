//! Endpoints, environments and waits that the tests of several rows use.

use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcAddress, RpcConf, RpcEndpointRef, RpcEnv,
    RpcError, RpcMessage, ThreadSafeRpcEndpoint,
};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, mpsc};

use crate::common::{Greeting, HelloMessage, SayHi, UndeliveredWatch, address, hi};

/// The name of the endpoint under test.
pub const NAME: &str = "target";

/// A timeout that no ask of these tests reaches.
pub const LONG: Duration = Duration::from_secs(60);

/// Awaits `future` for at most 2 s: a request that a working endpoint handles at once.
pub async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(Duration::from_secs(2), what, future).await
}

/// Awaits `future` for at most `limit`, and names `what` when that has elapsed.
pub async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// An endpoint that reports each message at once, and replies when its gate is open.
pub struct Gated<M> {
    label: &'static str,
    gate: Arc<RwLock<()>>,
    received: mpsc::UnboundedSender<String>,
    message: PhantomData<fn(M)>,
}

/// The test's handle of a [`Gated`] endpoint.
pub struct Gate {
    lock: Arc<RwLock<()>>,
    closed: Option<OwnedRwLockWriteGuard<()>>,
    received: mpsc::UnboundedReceiver<String>,
}

/// Makes an endpoint with a closed gate: its first message keeps it in `receive`.
pub fn stuck<M>(label: &'static str) -> (Gated<M>, Gate) {
    let lock = Arc::new(RwLock::new(()));
    let closed = Some(Arc::clone(&lock).try_write_owned().unwrap());
    let (sender, received) = mpsc::unbounded_channel();
    let endpoint = Gated { label, gate: Arc::clone(&lock), received: sender, message: PhantomData };
    (endpoint, Gate { lock, closed, received })
}

/// Makes an endpoint with an open gate.
pub fn working<M>(label: &'static str) -> (Gated<M>, Gate) {
    let (endpoint, mut gate) = stuck(label);
    gate.open();
    (endpoint, gate)
}

impl Gate {
    pub fn open(&mut self) {
        self.closed = None;
    }

    pub async fn close(&mut self) {
        let lock = Arc::clone(&self.lock).write_owned();
        self.closed = Some(promptly("the handler leaves the gate", lock).await);
    }

    /// Returns the text of the next message whose handling starts.
    pub async fn next(&mut self) -> String {
        promptly("the endpoint receives a message", self.received.recv())
            .await
            .expect("the endpoint is registered")
    }

    /// Returns the number of started messages that the test has not taken.
    pub fn buffered(&self) -> usize {
        self.received.len()
    }

    /// Waits for the message `text`, and returns the texts of those before it.
    pub async fn until(&mut self, text: &str) -> Vec<String> {
        let mut before = Vec::new();
        loop {
            let next = self.next().await;
            if next == text {
                return before;
            }
            before.push(next);
        }
    }

    /// Waits for the end of the endpoint, and returns the texts of the messages that it handled.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut texts = Vec::new();
        let all = async {
            while let Some(text) = self.received.recv().await {
                texts.push(text);
            }
        };
        within(Duration::from_secs(10), "the stopped endpoint ends", all).await;
        texts
    }
}

impl<M: RpcMessage + Into<HelloMessage>> ThreadSafeRpcEndpoint for Gated<M> {
    type Message = M;

    async fn receive(&mut self, message: M, _: &EndpointContext<M>) -> Result<(), RpcError> {
        let (text, context) = match message.into() {
            HelloMessage::SayHi(hi, context) => (hi.msg, context),
            HelloMessage::SayBye(bye, context) => (bye.msg, context),
        };
        // The test may have ended and dropped the receiver.
        let _ = self.received.send(text.clone());
        drop(self.gate.read().await);
        assert!(!text.starts_with("handler panics"), "as the message demands");
        context.reply(Greeting { text: self.label.to_owned() })
    }
}

/// Registers an endpoint with `env` whose `on_undelivered` sends the errors to the channel.
pub fn watch_undelivered(env: &RpcEnv) -> mpsc::UnboundedReceiver<(RpcError, RpcAddress)> {
    let (sender, errors) = mpsc::unbounded_channel();
    env.setup_endpoint("undelivered-watch", UndeliveredWatch(sender)).unwrap();
    errors
}

/// Starts a client whose queue to each remote endpoint holds at most `messages`.
pub async fn client_with_queue(messages: usize) -> RpcEnv {
    let limit = messages.to_string();
    let setting = ("spark.rpc.route.maxQueuedMessages", limit.as_str());
    let conf = RpcConf::from_settings([setting]).unwrap();
    RpcEnv::builder("client").client_mode().conf(conf).start().await.unwrap()
}

pub async fn look_up(client: &RpcEnv, server: &RpcEnv) -> RpcEndpointRef<HelloMessage> {
    let found = client.setup_endpoint_ref::<HelloMessage>(address(server), NAME);
    promptly("the lookup", found).await.unwrap()
}

/// Stops the endpoint and registers another one, without an await between the two.
pub fn replace<M: RpcMessage + Into<HelloMessage>>(
    env: &RpcEnv,
    predecessor: &RpcEndpointRef<M>,
    successor: Gated<M>,
    options: EndpointOptions,
) -> RpcEndpointRef<M> {
    env.stop(predecessor);
    env.setup_endpoint_with(NAME, successor, options).unwrap()
}

/// Asks with a timeout that the test does not reach, and returns the label of the endpoint.
pub fn ask(
    endpoint: &RpcEndpointRef<HelloMessage>,
    text: &str,
) -> impl Future<Output = Result<String, RpcError>> + Send + 'static {
    let reply = endpoint.ask_with_timeout(hi(text), LONG);
    async { reply.await.map(|greeting| greeting.text) }
}

/// Sends until the client's queue to the endpoint is full, and returns how many were accepted.
pub fn fill_queue(
    endpoint: &RpcEndpointRef<HelloMessage>,
    message: impl Fn(usize) -> SayHi,
) -> usize {
    let mut accepted = 0;
    loop {
        match endpoint.send(message(accepted)) {
            Ok(()) => accepted += 1,
            Err(full) if full.error().kind() == ErrorKind::Limit => return accepted,
            Err(other) => panic!("{other:?}"),
        }
    }
}

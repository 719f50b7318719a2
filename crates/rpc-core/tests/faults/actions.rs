//! Endpoints of each kind that run a closure of the test for each message.

use std::future::Future;
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use rpc_core::{
    EndpointContext, EndpointOptions, RpcCallContext, RpcEndpoint, RpcEndpointRef, RpcEnv,
    RpcError, RpcMessage, RpcRequest, ThreadSafeRpcEndpoint,
};

/// The context of the endpoint.
pub type Cx = EndpointContext<Action>;

type Run<T> = Box<dyn FnOnce(T, Cx) -> BoxFuture<'static, Result<(), RpcError>> + Send>;

/// A message that makes its endpoint run a closure.
pub struct Action(Run<RpcCallContext<u32>>, RpcCallContext<u32>);

impl RpcMessage for Action {}

/// The request of an [`Action`].
pub struct Do(Run<RpcCallContext<u32>>);

impl RpcRequest<Action> for Do {
    type Reply = u32;
    fn into_message(self, context: RpcCallContext<u32>) -> Action {
        Action(self.0, context)
    }
}

/// Makes the request to run `action` with the context of the request and of the endpoint.
pub fn act<F: Future<Output = Result<(), RpcError>> + Send + 'static>(
    action: impl FnOnce(RpcCallContext<u32>, Cx) -> F + Send + 'static,
) -> Do {
    Do(Box::new(move |context, cx| Box::pin(action(context, cx))))
}

/// Makes a request that is replied with 1.
pub fn reply() -> Do {
    act(|context, _| async { context.reply(1) })
}

/// The kinds of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ThreadSafe,
    Concurrent,
    IsolatedThreadSafe,
    Isolated(usize),
}

pub const KINDS: [Kind; 5] = [
    Kind::ThreadSafe,
    Kind::Concurrent,
    Kind::IsolatedThreadSafe,
    Kind::Isolated(1),
    Kind::Isolated(2),
];

/// The closures that run in `on_start` and `on_stop`.
#[derive(Default)]
pub struct Hooks {
    start: Mutex<Option<Run<()>>>,
    stop: Mutex<Option<Run<()>>>,
}

impl Hooks {
    pub fn on_start<F: Future<Output = Result<(), RpcError>> + Send + 'static>(
        action: impl FnOnce(Cx) -> F + Send + 'static,
    ) -> Self {
        let start: Run<()> = Box::new(move |(), cx| Box::pin(action(cx)));
        Self { start: Mutex::new(Some(start)), stop: Mutex::default() }
    }

    pub fn on_stop<F: Future<Output = Result<(), RpcError>> + Send + 'static>(
        action: impl FnOnce(Cx) -> F + Send + 'static,
    ) -> Self {
        let stop: Run<()> = Box::new(move |(), cx| Box::pin(action(cx)));
        Self { start: Mutex::default(), stop: Mutex::new(Some(stop)) }
    }
}

async fn run(hook: &Mutex<Option<Run<()>>>, cx: &Cx) -> Result<(), RpcError> {
    let hook = hook.lock().unwrap().take();
    match hook {
        Some(hook) => hook((), cx.clone()).await,
        None => Ok(()),
    }
}

struct Serial(Arc<Hooks>);

impl ThreadSafeRpcEndpoint for Serial {
    type Message = Action;
    async fn receive(&mut self, Action(run, context): Action, cx: &Cx) -> Result<(), RpcError> {
        run(context, cx.clone()).await
    }
    async fn on_start(&mut self, cx: &Cx) -> Result<(), RpcError> {
        run(&self.0.start, cx).await
    }
    async fn on_stop(&mut self, cx: &Cx) -> Result<(), RpcError> {
        run(&self.0.stop, cx).await
    }
}

struct Concurrent(Arc<Hooks>);

impl RpcEndpoint for Concurrent {
    type Message = Action;
    async fn receive(&self, Action(run, context): Action, cx: &Cx) -> Result<(), RpcError> {
        run(context, cx.clone()).await
    }
    async fn on_start(&self, cx: &Cx) -> Result<(), RpcError> {
        run(&self.0.start, cx).await
    }
    async fn on_stop(&self, cx: &Cx) -> Result<(), RpcError> {
        run(&self.0.stop, cx).await
    }
}

/// Registers an endpoint of a kind under the name "acts".
pub fn set_up(env: &RpcEnv, kind: Kind, hooks: Hooks) -> RpcEndpointRef<Action> {
    set_up_with(env, kind, hooks, EndpointOptions::new())
}

pub fn set_up_with(
    env: &RpcEnv,
    kind: Kind,
    hooks: Hooks,
    options: EndpointOptions,
) -> RpcEndpointRef<Action> {
    let hooks = Arc::new(hooks);
    let options = match kind {
        Kind::ThreadSafe | Kind::Concurrent => options,
        Kind::IsolatedThreadSafe => options.isolated(1),
        Kind::Isolated(threads) => options.isolated(threads),
    };
    match kind {
        Kind::ThreadSafe | Kind::IsolatedThreadSafe => {
            env.setup_endpoint_with("acts", Serial(hooks), options)
        }
        Kind::Concurrent | Kind::Isolated(_) => {
            env.setup_endpoint_with("acts", Concurrent(hooks), options)
        }
    }
    .unwrap()
}

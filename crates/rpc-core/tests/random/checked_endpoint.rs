//! Endpoints that perform the action in each message, and check how the crate calls them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rpc_core::{
    EndpointContext, EndpointOptions, OverflowPolicy, RpcAddress, RpcCallContext, RpcEndpoint,
    RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};

use crate::INTENDED_FAILURE;
use crate::messages::order::Action;
use crate::messages::{Done, Order, WorkDo, WorkMessage};
use crate::record::{LeakToken, Ref, RunRecord};

/// The kinds of endpoint that every environment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    Serial,
    /// With an inbox of three messages.
    SmallInbox,
    /// With an inbox of two messages that drops the oldest one.
    DropsOldest,
    Concurrent,
    /// Its `on_start` fails, so it must handle one message at a time.
    FailsOnStart,
    Isolated,
    /// Concurrent on three threads, with an inbox of four messages.
    IsolatedConcurrent,
}

impl EndpointKind {
    pub const IN_MEMORY: &[Self] =
        &[Self::Serial, Self::SmallInbox, Self::DropsOldest, Self::Concurrent, Self::FailsOnStart];
    pub const ALL: &[Self] = &[
        Self::Serial,
        Self::SmallInbox,
        Self::DropsOldest,
        Self::Concurrent,
        Self::FailsOnStart,
        Self::Isolated,
        Self::IsolatedConcurrent,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::SmallInbox => "small-inbox",
            Self::DropsOldest => "drops-oldest",
            Self::Concurrent => "concurrent",
            Self::FailsOnStart => "fails-on-start",
            Self::Isolated => "isolated",
            Self::IsolatedConcurrent => "isolated-concurrent",
        }
    }

    /// Returns the kind of the endpoints with this name.
    pub fn of(name: &str) -> Self {
        *Self::ALL.iter().find(|kind| kind.name() == name).unwrap()
    }

    pub fn is_serial(self) -> bool {
        !matches!(self, Self::Concurrent | Self::IsolatedConcurrent)
    }

    pub fn set_up(self, env: &RpcEnv, record: &Arc<RunRecord>) -> Result<Ref, RpcError> {
        let history = Arc::new(CallHistory { kind: self, state: Mutex::default() });
        let checker = CallChecker {
            history: Arc::clone(&history),
            record: Arc::clone(record),
            _token: record.endpoint_token(),
        };
        let options = EndpointOptions::new();
        let name = self.name();
        let endpoint = match self {
            Self::Serial => env.setup_endpoint(name, Serial(checker)),
            Self::SmallInbox => {
                env.setup_endpoint_with(name, Serial(checker), options.max_messages(3))
            }
            Self::DropsOldest => {
                let options = options.max_messages(2).overflow(OverflowPolicy::DropOldest);
                env.setup_endpoint_with(name, Serial(checker), options)
            }
            Self::Concurrent | Self::FailsOnStart => env.setup_endpoint(name, Concurrent(checker)),
            Self::Isolated => env.setup_endpoint_with(name, Serial(checker), options.isolated(1)),
            Self::IsolatedConcurrent => {
                let options = options.isolated(3).max_messages(4);
                env.setup_endpoint_with(name, Concurrent(checker), options)
            }
        }?;
        record.add_history(&history);
        Ok(endpoint)
    }
}

/// The calls that an endpoint has received.
pub struct CallHistory {
    kind: EndpointKind,
    state: Mutex<HistoryState>,
}

#[derive(Default)]
struct HistoryState {
    started: bool,
    stopped: bool,
    running: usize,
    /// The number of the last message received from each holder.
    last_numbers: HashMap<u64, u64>,
}

impl CallHistory {
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub fn has_stopped(&self) -> bool {
        self.state.lock().unwrap().stopped
    }
}

struct CallChecker {
    history: Arc<CallHistory>,
    record: Arc<RunRecord>,
    _token: LeakToken,
}

/// A call that runs in an endpoint; it ends when this is dropped.
struct ActiveCall<'a>(&'a CallHistory);

impl Drop for ActiveCall<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().running -= 1;
    }
}

impl CallChecker {
    fn enter(&self, call: &str) -> ActiveCall<'_> {
        let mut state = self.history.state.lock().unwrap();
        let starts = call == "on_start";
        if state.started == starts {
            self.report_violation(&format!("{call} runs before or during on_start"));
        }
        if state.stopped {
            self.report_violation(&format!("{call} runs after on_stop"));
        }
        if state.running > 0 && (self.history.kind.is_serial() || starts || call == "on_stop") {
            self.report_violation(&format!("{call} runs during another call"));
        }
        state.running += 1;
        state.started = true;
        ActiveCall(&self.history)
    }

    fn report_violation(&self, text: &str) {
        self.record.report_violation(format!("{}: {text}", self.history.name()));
    }

    fn on_message(&self, order: &Order) {
        self.record.on_handled((order.holder, order.number));
        // Several threads of an isolated endpoint start messages in any order.
        if self.history.kind != EndpointKind::IsolatedConcurrent {
            let mut state = self.history.state.lock().unwrap();
            if let Some(before) = state.last_numbers.insert(order.holder, order.number)
                && before >= order.number
            {
                self.report_violation(&format!(
                    "message {} of holder {} arrives after {before}",
                    order.number, order.holder
                ));
            }
        }
    }

    async fn on_start(&self) -> Result<(), RpcError> {
        let _call = self.enter("on_start");
        tokio::task::yield_now().await;
        match self.history.kind {
            EndpointKind::FailsOnStart => Err(RpcError::application(INTENDED_FAILURE)),
            _ => Ok(()),
        }
    }

    async fn on_stop(&self) -> Result<(), RpcError> {
        let call = self.enter("on_stop");
        tokio::task::yield_now().await;
        drop(call);
        self.history.state.lock().unwrap().stopped = true;
        Ok(())
    }

    async fn on_event(&self) -> Result<(), RpcError> {
        let _call = self.enter("an event");
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn receive(
        &self,
        message: WorkMessage,
        cx: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        let _call = self.enter("receive");
        match message {
            WorkMessage::Do(order, context) => {
                self.on_message(&order);
                self.perform(order, context, cx).await
            }
            WorkMessage::Notify(order) => {
                self.on_message(&order);
                tokio::time::sleep(Duration::from_millis(order.millis.into())).await;
                Ok(())
            }
        }
    }

    async fn perform(
        &self,
        order: Order,
        context: RpcCallContext<Done>,
        cx: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        let done = Done { holder: order.holder, number: order.number };
        let wait = Duration::from_millis(order.millis.into());
        match order.action() {
            Action::Reply => context.reply(done),
            Action::Wait => {
                tokio::time::sleep(wait).await;
                context.reply(done)
            }
            Action::Keep => {
                self.record.keep_context(context);
                Ok(())
            }
            Action::Drop => Ok(()),
            Action::Fail => Err(RpcError::application(INTENDED_FAILURE)),
            Action::Panic => std::panic::panic_any(INTENDED_FAILURE),
            Action::Spawn => {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    context.reply(done)
                });
                Ok(())
            }
            // A one-way message cannot be cancelled.
            Action::Watch if context.remaining().is_none() => Ok(()),
            Action::Watch => {
                tokio::spawn(async move { context.cancelled().await });
                Ok(())
            }
            Action::AskAnother => {
                let other_ref = self.record.refs.lock().unwrap().last().cloned();
                if let Some(other_ref) = other_ref {
                    let order = Order { holder: self.record.new_holder(), ..Order::default() };
                    other_ref.ask_with_timeout(WorkDo(order), Duration::from_millis(30)).await?;
                }
                context.reply(done)
            }
            Action::Resolve => {
                let resolved =
                    order.target.as_ref().map(|target| cx.env().resolve(target)).transpose()?;
                resolved.into_iter().for_each(|resolved| self.record.share_ref(resolved));
                context.reply(done)
            }
            Action::Stop => {
                cx.env().stop(cx.self_ref());
                context.reply(done)
            }
        }
    }
}

struct Serial(CallChecker);
struct Concurrent(CallChecker);

macro_rules! impl_checked {
    ($endpoint:ty, $interface:ident, $self:ty) => {
        impl $interface for $endpoint {
            type Message = WorkMessage;
            async fn receive(
                self: $self,
                message: WorkMessage,
                cx: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.receive(message, cx).await
            }
            async fn on_start(
                self: $self,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.on_start().await
            }
            async fn on_stop(
                self: $self,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.on_stop().await
            }
            async fn on_error(
                self: $self,
                _: RpcError,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                Ok(())
            }
            async fn on_connected(
                self: $self,
                _: RpcAddress,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.on_event().await
            }
            async fn on_disconnected(
                self: $self,
                _: RpcAddress,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.on_event().await
            }
        }
    };
}

impl_checked!(Serial, ThreadSafeRpcEndpoint, &mut Self);
impl_checked!(Concurrent, RpcEndpoint, &Self);

//! Endpoints that perform the action in each message, and check how the crate calls them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rpc_core::{
    EndpointContext, EndpointOptions, OverflowPolicy, RpcAddress, RpcCallContext, RpcEndpoint,
    RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};

use crate::ON_PURPOSE;
use crate::book::{Book, Held, Ref};
use crate::messages::order::Deed;
use crate::messages::{Done, Order, WorkDo, WorkMessage};

/// The kinds of endpoint that every environment has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Serial,
    /// With an inbox of three messages.
    Narrow,
    /// With an inbox of two messages that drops the oldest one.
    Dropping,
    Concurrent,
    /// Its `on_start` fails, so it must handle one message at a time.
    Unstartable,
    Isolated,
    /// Concurrent on three threads, with an inbox of four messages.
    Crowd,
}

impl Kind {
    pub const IN_MEMORY: &[Self] =
        &[Self::Serial, Self::Narrow, Self::Dropping, Self::Concurrent, Self::Unstartable];
    pub const ALL: &[Self] = &[
        Self::Serial,
        Self::Narrow,
        Self::Dropping,
        Self::Concurrent,
        Self::Unstartable,
        Self::Isolated,
        Self::Crowd,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Narrow => "narrow",
            Self::Dropping => "dropping",
            Self::Concurrent => "concurrent",
            Self::Unstartable => "unstartable",
            Self::Isolated => "isolated",
            Self::Crowd => "crowd",
        }
    }

    /// Returns the kind of the endpoints with this name.
    pub fn of(name: &str) -> Self {
        *Self::ALL.iter().find(|kind| kind.name() == name).unwrap()
    }

    pub fn one_at_a_time(self) -> bool {
        !matches!(self, Self::Concurrent | Self::Crowd)
    }

    pub fn setup(self, env: &RpcEnv, book: &Arc<Book>) -> Result<Ref, RpcError> {
        let life = Arc::new(Life { kind: self, state: Mutex::default() });
        let witness =
            Witness { life: Arc::clone(&life), book: Arc::clone(book), _held: book.endpoint() };
        let options = EndpointOptions::new();
        let name = self.name();
        let endpoint = match self {
            Self::Serial => env.setup_endpoint(name, Serial(witness)),
            Self::Narrow => env.setup_endpoint_with(name, Serial(witness), options.max_messages(3)),
            Self::Dropping => {
                let options = options.max_messages(2).overflow(OverflowPolicy::DropOldest);
                env.setup_endpoint_with(name, Serial(witness), options)
            }
            Self::Concurrent | Self::Unstartable => env.setup_endpoint(name, Concurrent(witness)),
            Self::Isolated => env.setup_endpoint_with(name, Serial(witness), options.isolated(1)),
            Self::Crowd => {
                let options = options.isolated(3).max_messages(4);
                env.setup_endpoint_with(name, Concurrent(witness), options)
            }
        }?;
        book.new_life(&life);
        Ok(endpoint)
    }
}

/// The calls that an endpoint has received.
pub struct Life {
    kind: Kind,
    state: Mutex<LifeState>,
}

#[derive(Default)]
struct LifeState {
    started: bool,
    stopped: bool,
    running: usize,
    /// The number of the last message received from each holder.
    latest: HashMap<u64, u64>,
}

impl Life {
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub fn has_stopped(&self) -> bool {
        self.state.lock().unwrap().stopped
    }
}

struct Witness {
    life: Arc<Life>,
    book: Arc<Book>,
    _held: Held,
}

/// A call that runs in an endpoint; it ends when this is dropped.
struct Turn<'a>(&'a Life);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().running -= 1;
    }
}

impl Witness {
    fn begin(&self, what: &str) -> Turn<'_> {
        let mut state = self.life.state.lock().unwrap();
        let starts = what == "on_start";
        if state.started == starts {
            self.complain(&format!("{what} runs before or during on_start"));
        }
        if state.stopped {
            self.complain(&format!("{what} runs after on_stop"));
        }
        if state.running > 0 && (self.life.kind.one_at_a_time() || starts || what == "on_stop") {
            self.complain(&format!("{what} runs during another call"));
        }
        state.running += 1;
        state.started = true;
        Turn(&self.life)
    }

    fn complain(&self, what: &str) {
        self.book.complain(format!("{}: {what}", self.life.name()));
    }

    fn arrived(&self, order: &Order) {
        self.book.handled((order.holder, order.number));
        // Several threads of an isolated endpoint start messages in any order.
        if self.life.kind != Kind::Crowd {
            let mut state = self.life.state.lock().unwrap();
            if let Some(before) = state.latest.insert(order.holder, order.number) {
                if before >= order.number {
                    self.complain(&format!(
                        "message {} of holder {} arrives after {before}",
                        order.number, order.holder
                    ));
                }
            }
        }
    }

    async fn start(&self) -> Result<(), RpcError> {
        let _turn = self.begin("on_start");
        tokio::task::yield_now().await;
        match self.life.kind {
            Kind::Unstartable => Err(RpcError::application(ON_PURPOSE)),
            _ => Ok(()),
        }
    }

    async fn stop(&self) -> Result<(), RpcError> {
        let turn = self.begin("on_stop");
        tokio::task::yield_now().await;
        drop(turn);
        self.life.state.lock().unwrap().stopped = true;
        Ok(())
    }

    async fn event(&self) -> Result<(), RpcError> {
        let _turn = self.begin("an event");
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn receive(
        &self,
        message: WorkMessage,
        cx: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        let _turn = self.begin("receive");
        match message {
            WorkMessage::Do(order, context) => {
                self.arrived(&order);
                self.perform(order, context, cx).await
            }
            WorkMessage::Tell(order) => {
                self.arrived(&order);
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
        match order.deed() {
            Deed::Reply => context.reply(done),
            Deed::Wait => {
                tokio::time::sleep(wait).await;
                context.reply(done)
            }
            Deed::Keep => {
                self.book.keep(context);
                Ok(())
            }
            Deed::Drop => Ok(()),
            Deed::Fail => Err(RpcError::application(ON_PURPOSE)),
            Deed::Panic => std::panic::panic_any(ON_PURPOSE),
            Deed::Spawn => {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    context.reply(done)
                });
                Ok(())
            }
            // A one-way message cannot be cancelled.
            Deed::Watch if context.remaining().is_none() => Ok(()),
            Deed::Watch => {
                tokio::spawn(async move { context.cancelled().await });
                Ok(())
            }
            Deed::Relay => {
                let another = self.book.refs.lock().unwrap().last().cloned();
                if let Some(another) = another {
                    let order = Order { holder: self.book.new_holder(), ..Order::default() };
                    another.ask_with_timeout(WorkDo(order), Duration::from_millis(30)).await?;
                }
                context.reply(done)
            }
            Deed::Meet => {
                let met = order.who.as_ref().map(|who| cx.env().resolve(who)).transpose()?;
                met.into_iter().for_each(|met| self.book.offer(met));
                context.reply(done)
            }
            Deed::Stop => {
                cx.self_ref().into_iter().for_each(|me| cx.env().stop(me));
                context.reply(done)
            }
        }
    }
}

struct Serial(Witness);
struct Concurrent(Witness);

macro_rules! watched {
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
                self.0.start().await
            }
            async fn on_stop(
                self: $self,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.stop().await
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
                self.0.event().await
            }
            async fn on_disconnected(
                self: $self,
                _: RpcAddress,
                _: &EndpointContext<WorkMessage>,
            ) -> Result<(), RpcError> {
                self.0.event().await
            }
        }
    };
}

watched!(Serial, ThreadSafeRpcEndpoint, &mut Self);
watched!(Concurrent, RpcEndpoint, &Self);

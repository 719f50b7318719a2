//! kameo with unbounded mailboxes, as its bounded ones are slower; without its tracing.

use benches::actors::{self, Received};
use bytes::Bytes;
use kameo::actor::{ActorRef, Spawn};
use kameo::error::Infallible;
use kameo::mailbox;
use kameo::message::{Context, Message};

/// A ref to an actor.
#[derive(Clone)]
pub struct Kameo(ActorRef<Counter>);

/// The actor.
#[derive(Default)]
pub struct Counter(Received);

impl kameo::Actor for Counter {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(state: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(state)
    }
}

struct Tell(u32, u64);

struct Ask;

impl Message<Tell> for Counter {
    type Reply = ();

    async fn handle(&mut self, Tell(producer, sequence): Tell, _: &mut Context<Self, ()>) {
        self.0.take(producer, sequence);
    }
}

impl Message<Ask> for Counter {
    type Reply = Result<(u64, bool), Infallible>;

    async fn handle(&mut self, _: Ask, _: &mut Context<Self, Self::Reply>) -> Self::Reply {
        Ok(self.0.report())
    }
}

impl Kameo {
    /// Starts an actor.
    pub fn start() -> Self {
        Self(Counter::spawn_with_mailbox(Counter::default(), mailbox::unbounded()))
    }
}

impl actors::Actor for Kameo {
    const QUEUES: bool = false;

    async fn tell(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.tell(Tell(producer, sequence)).send().await?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let actor = self.0.clone();
        async move { Ok(actor.ask(Ask).send().await?) }
    }
}

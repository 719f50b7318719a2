//! kameo with unbounded mailboxes, because its bounded mailboxes are slower, and without tracing.

use benches::actors::{self, Received};
use bytes::Bytes;
use kameo::actor::{ActorRef, Spawn};
use kameo::error::Infallible;
use kameo::mailbox;
use kameo::message::{Context, Message};

/// A ref to an actor.
#[derive(Clone)]
pub struct Kameo(ActorRef<KameoCounter>);

/// The measured actor.
#[derive(Default)]
pub struct KameoCounter(Received);

impl kameo::Actor for KameoCounter {
    type Args = Self;
    type Error = Infallible;

    async fn on_start(state: Self, _: ActorRef<Self>) -> Result<Self, Infallible> {
        Ok(state)
    }
}

struct KameoPost(u32, u64);

struct KameoAsk;

impl Message<KameoPost> for KameoCounter {
    type Reply = ();

    async fn handle(
        &mut self,
        KameoPost(producer, sequence): KameoPost,
        _: &mut Context<Self, ()>,
    ) {
        self.0.record(producer, sequence);
    }
}

impl Message<KameoAsk> for KameoCounter {
    type Reply = Result<(u64, bool), Infallible>;

    async fn handle(&mut self, _: KameoAsk, _: &mut Context<Self, Self::Reply>) -> Self::Reply {
        Ok(self.0.report())
    }
}

impl Kameo {
    /// Starts an actor.
    pub fn start() -> Self {
        Self(KameoCounter::spawn_with_mailbox(KameoCounter::default(), mailbox::unbounded()))
    }
}

impl actors::Actor for Kameo {
    const IS_EAGER: bool = false;

    async fn send(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.tell(KameoPost(producer, sequence)).send().await?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let actor = self.0.clone();
        async move { Ok(actor.ask(KameoAsk).send().await?) }
    }
}

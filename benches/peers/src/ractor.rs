//! ractor without its features for tracing spans and for clusters.
//!
//! Both add a field to every message: its span, and its serialized form for remote actors.

use benches::actors::{self, Received};
use bytes::Bytes;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

/// A reference to an actor.
#[derive(Clone)]
pub struct Ractor(ActorRef<CounterMessage>);

/// The messages of the measured actor.
pub enum CounterMessage {
    /// A one-way message: the producer and its sequence number.
    Post(u32, u64),
    /// An ask for `Received::report`.
    Ask(RpcReplyPort<(u64, bool)>),
}

struct RactorCounter;

impl Actor for RactorCounter {
    type Msg = CounterMessage;
    type State = Received;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<CounterMessage>,
        (): (),
    ) -> Result<Received, ActorProcessingErr> {
        Ok(Received::default())
    }

    async fn handle(
        &self,
        _: ActorRef<CounterMessage>,
        message: CounterMessage,
        received: &mut Received,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CounterMessage::Post(producer, sequence) => received.record(producer, sequence),
            CounterMessage::Ask(port) => port.send(received.report())?,
        }
        Ok(())
    }
}

impl Ractor {
    /// Starts an actor.
    pub fn start() -> anyhow::Result<Self> {
        let (actor, _) = ractor::ActorRuntime::spawn_instant(None, RactorCounter, ())?;
        Ok(Self(actor))
    }
}

impl actors::Actor for Ractor {
    const IS_EAGER: bool = false;

    async fn send(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        let sent = self.0.cast(CounterMessage::Post(producer, sequence));
        sent.map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let actor = self.0.clone();
        async move {
            match actor.call(CounterMessage::Ask, None).await {
                Ok(CallResult::Success(report)) => Ok(report),
                _ => anyhow::bail!("the actor did not reply"),
            }
        }
    }
}

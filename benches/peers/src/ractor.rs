//! ractor without its spans for each message and without its cluster feature, which would add a
//! conversion to each.

use benches::actors::{self, Received};
use bytes::Bytes;
use ractor::rpc::CallResult;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

/// A ref to an actor.
#[derive(Clone)]
pub struct Ractor(ActorRef<Message>);

/// What the actor gets.
pub enum Message {
    /// By producer, sequence number.
    Tell(u32, u64),
    /// For what was received.
    Ask(RpcReplyPort<(u64, bool)>),
}

struct Counter;

impl Actor for Counter {
    type Msg = Message;
    type State = Received;
    type Arguments = ();

    async fn pre_start(
        &self,
        _: ActorRef<Message>,
        (): (),
    ) -> Result<Received, ActorProcessingErr> {
        Ok(Received::default())
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        received: &mut Received,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Tell(producer, sequence) => received.take(producer, sequence),
            Message::Ask(port) => port.send(received.report())?,
        }
        Ok(())
    }
}

impl Ractor {
    /// Starts an actor.
    pub fn start() -> anyhow::Result<Self> {
        let (actor, _) = ractor::ActorRuntime::spawn_instant(None, Counter, ())?;
        Ok(Self(actor))
    }
}

impl actors::Actor for Ractor {
    const QUEUES: bool = false;

    async fn tell(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        self.0.cast(Message::Tell(producer, sequence)).map_err(|error| anyhow::anyhow!("{error}"))
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let actor = self.0.clone();
        async move {
            match actor.call(Message::Ask, None).await {
                Ok(CallResult::Success(report)) => Ok(report),
                _ => anyhow::bail!("no answer"),
            }
        }
    }
}

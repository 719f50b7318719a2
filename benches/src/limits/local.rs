//! The limit of actors: a task behind a channel.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::actors::{Actor, Received};

/// An actor of tokio's mpsc and oneshot, and nothing else.
#[derive(Clone, Debug)]
pub struct Channel(mpsc::UnboundedSender<Message>);

#[derive(Debug)]
enum Message {
    Tell(u32, u64),
    Ask(oneshot::Sender<(u64, bool)>),
}

impl Channel {
    /// Starts one.
    #[must_use]
    pub fn start() -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut received = Received::default();
            while let Some(message) = inbox.recv().await {
                match message {
                    Message::Tell(producer, sequence) => received.take(producer, sequence),
                    // Fails when the asker has gone.
                    Message::Ask(answer) => drop(answer.send(received.report())),
                }
            }
        });
        Self(sender)
    }
}

impl Actor for Channel {
    const QUEUES: bool = true;

    async fn tell(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.send(Message::Tell(producer, sequence))?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let (sender, answer) = oneshot::channel();
        let asked = self.0.send(Message::Ask(sender));
        async move {
            asked?;
            Ok(answer.await?)
        }
    }
}

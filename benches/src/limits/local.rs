//! The limit of actors: a task that reads a channel.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::actors::{Actor, Received};

/// An actor made of tokio's mpsc and oneshot.
#[derive(Clone, Debug)]
pub struct Channel(mpsc::UnboundedSender<ChannelMessage>);

#[derive(Debug)]
enum ChannelMessage {
    /// Producer and sequence number.
    Post(u32, u64),
    Ask(oneshot::Sender<(u64, bool)>),
}

impl Channel {
    /// Starts an actor.
    #[must_use]
    pub fn start() -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut received = Received::default();
            while let Some(message) = inbox.recv().await {
                match message {
                    ChannelMessage::Post(producer, sequence) => received.record(producer, sequence),
                    // This fails if the caller was dropped.
                    ChannelMessage::Ask(reply) => drop(reply.send(received.report())),
                }
            }
        });
        Self(sender)
    }
}

impl Actor for Channel {
    const IS_EAGER: bool = true;

    async fn send(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        Ok(self.0.send(ChannelMessage::Post(producer, sequence))?)
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let (sender, reply) = oneshot::channel();
        let sent = self.0.send(ChannelMessage::Ask(sender));
        async move {
            sent?;
            Ok(reply.await?)
        }
    }
}

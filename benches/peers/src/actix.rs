//! actix: actors in turns on two arbiters, as many as the other contenders have workers. `do_send`
//! is its cheapest one-way message, without a bound.

use std::sync::mpsc;

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, System};
use anyhow::Context as _;
use benches::actors::{self, Received};
use bytes::Bytes;

/// An actor's address.
#[derive(Clone)]
pub struct Actix(Addr<Counter>);

/// The actor.
#[derive(Default)]
pub struct Counter(Received);

impl Actor for Counter {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct Tell(u32, u64);

#[derive(Message)]
#[rtype(result = "(u64, bool)")]
struct Ask;

impl Handler<Tell> for Counter {
    type Result = ();

    fn handle(&mut self, Tell(producer, sequence): Tell, _: &mut Context<Self>) {
        self.0.take(producer, sequence);
    }
}

impl Handler<Ask> for Counter {
    type Result = actix::MessageResult<Ask>;

    fn handle(&mut self, _: Ask, _: &mut Context<Self>) -> Self::Result {
        actix::MessageResult(self.0.report())
    }
}

/// Starts actors.
pub fn starter() -> anyhow::Result<impl FnMut() -> anyhow::Result<Actix> + Send + 'static> {
    let (sender, arbiters) = mpsc::channel();
    std::thread::spawn(move || {
        let system = System::new();
        let started = system.block_on(async { [Arbiter::new().handle(), Arbiter::new().handle()] });
        // Fails only without a receiver, and then nobody needs the system.
        let _ = sender.send(started);
        system.run()
    });
    let arbiters = arbiters.recv().context("actix does not start")?;
    let mut turn = 0;
    Ok(move || {
        turn += 1;
        Ok(Actix(Counter::start_in_arbiter(&arbiters[turn % arbiters.len()], |_| {
            Counter::default()
        })))
    })
}

impl actors::Actor for Actix {
    const QUEUES: bool = true;

    async fn tell(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        self.0.do_send(Tell(producer, sequence));
        Ok(())
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let answer = self.0.send(Ask);
        async move { Ok(answer.await?) }
    }
}

//! actix with two arbiters, as many as the other contenders have worker threads.
//!
//! The actors are distributed evenly over the arbiters. One-way messages use `do_send`, which is
//! the cheapest way and ignores the capacity of the mailbox.

use std::sync::mpsc;

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, System};
use anyhow::Context as _;
use benches::actors::{self, Received};
use bytes::Bytes;

/// An actor's address.
#[derive(Clone)]
pub struct Actix(Addr<ActixCounter>);

/// The measured actor.
#[derive(Default)]
pub struct ActixCounter(Received);

impl Actor for ActixCounter {
    type Context = Context<Self>;
}

#[derive(Message)]
#[rtype(result = "()")]
struct ActixPost(u32, u64);

#[derive(Message)]
#[rtype(result = "(u64, bool)")]
struct ActixAsk;

impl Handler<ActixPost> for ActixCounter {
    type Result = ();

    fn handle(&mut self, ActixPost(producer, sequence): ActixPost, _: &mut Context<Self>) {
        self.0.record(producer, sequence);
    }
}

impl Handler<ActixAsk> for ActixCounter {
    type Result = actix::MessageResult<ActixAsk>;

    fn handle(&mut self, _: ActixAsk, _: &mut Context<Self>) -> Self::Result {
        actix::MessageResult(self.0.report())
    }
}

/// Starts the arbiters, and returns a function that starts one actor.
pub fn starter() -> anyhow::Result<impl FnMut() -> anyhow::Result<Actix> + Send + 'static> {
    let (sender, arbiters) = mpsc::channel();
    std::thread::spawn(move || {
        let system = System::new();
        let started = system.block_on(async { [Arbiter::new().handle(), Arbiter::new().handle()] });
        // This fails if `starter` has returned early.
        let _ = sender.send(started);
        system.run()
    });
    let arbiters = arbiters.recv().context("actix cannot start")?;
    let mut started = 0;
    Ok(move || {
        started += 1;
        Ok(Actix(ActixCounter::start_in_arbiter(&arbiters[started % arbiters.len()], |_| {
            ActixCounter::default()
        })))
    })
}

impl actors::Actor for Actix {
    const IS_EAGER: bool = true;

    async fn send(&self, producer: u32, sequence: u64, _: &Bytes) -> anyhow::Result<()> {
        self.0.do_send(ActixPost(producer, sequence));
        Ok(())
    }

    fn ask(&self) -> impl Future<Output = anyhow::Result<(u64, bool)>> + Send + 'static {
        let reply = self.0.send(ActixAsk);
        async move { Ok(reply.await?) }
    }
}

//! An actor that performs one random operation after another.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rpc_core::{AbortHandle, AskFuture, EndpointRef, ErrorKind, RpcError};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::book::{Book, Mark, Ref};
use crate::messages::order::Deed;
use crate::messages::{Done, Order, WorkDo, WorkTell};
use crate::witness::Kind;
use crate::world::{Home, SOON, World};

/// The longest time between the timeout of an ask and its end, on a busy machine.
const SLACK: Duration = Duration::from_secs(10);

/// A timeout that no ask should reach: each is replied to, dropped, or fails with its connection
/// before.
const LONG: Duration = Duration::from_secs(10);

const LIMITS: [Duration; 7] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(50),
    LONG,
    LONG,
    LONG,
    LONG,
];

pub struct Player {
    world: Arc<World>,
    random: StdRng,
    holders: Vec<Holder>,
    /// Tasks that await pending asks.
    asks: JoinSet<()>,
    aborts: Vec<AbortHandle>,
}

/// A ref whose messages must arrive in the order in which they were sent.
struct Holder {
    id: u64,
    sent: u64,
    endpoint: Ref,
    kind: Kind,
}

/// The outcome that an ask may have.
#[derive(Debug)]
struct Expected {
    deed: Deed,
    mark: Mark,
    limit: Duration,
    /// The ask may fail only with a full inbox.
    certain: bool,
}

impl Player {
    pub fn new(world: Arc<World>, random: StdRng) -> Self {
        Self { world, random, holders: Vec::new(), asks: JoinSet::new(), aborts: Vec::new() }
    }

    /// Performs `turns` operations, and returns the pending asks.
    pub async fn play(mut self, turns: usize) -> JoinSet<()> {
        for _ in 0..turns {
            self.turn().await;
            while let Some(ended) = self.asks.try_join_next() {
                ended.unwrap();
            }
        }
        self.asks
    }

    async fn turn(&mut self) {
        match self.random.random_range(0..100) {
            0..12 => self.look_up().await,
            12..17 => self.take_over(),
            17..52 => self.ask(),
            52..70 => self.send(),
            70..78 => self.send_wait().await,
            78..82 => self.answer_a_kept_one().await,
            82..85 => self.abort_one(),
            85..93 => {
                tokio::time::sleep(Duration::from_millis(self.random.random_range(0..4))).await
            }
            _ if self.world.calm => tokio::task::yield_now().await,
            93..96 => self.replace_an_endpoint(),
            96..99 => self.cut(),
            _ => {
                let home = self.random.random_range(0..self.world.homes.len());
                self.world.restart(&self.world.homes[home]).await;
            }
        }
    }

    fn hold(&mut self, endpoint: Ref) {
        let kind = Kind::of(endpoint.name());
        let holder = Holder { id: self.world.book.new_holder(), sent: 0, endpoint, kind };
        if self.holders.len() == 6 {
            let place = self.random.random_range(0..6);
            self.holders[place] = holder;
        } else {
            self.holders.push(holder);
        }
    }

    async fn look_up(&mut self) {
        let world = Arc::clone(&self.world);
        let from = world.homes.choose(&mut self.random).unwrap();
        let to = world.homes.choose(&mut self.random).unwrap();
        let proxied =
            to.proxy.as_ref().filter(|_| self.random.random()).map(|proxy| &proxy.address);
        let Some(address) = proxied.or(to.address.as_ref()) else { return };
        let kind = *world.kinds().choose(&mut self.random).unwrap();
        let looked_up =
            timeout(SOON, from.env().setup_endpoint_ref(address.clone(), kind.name())).await;
        match looked_up {
            Ok(Ok(endpoint)) => {
                if self.random.random_bool(0.3) {
                    world.book.offer(endpoint.clone());
                }
                self.hold(endpoint);
            }
            Ok(Err(error)) if world.calm => {
                world.book.complain(format!("the lookup of {kind:?} at {address} failed: {error}"));
            }
            Ok(Err(_)) => {}
            Err(_) => {
                world.book.complain(format!("the lookup of {kind:?} at {address} does not complete"))
            }
        }
    }

    /// Takes one of the shared refs.
    fn take_over(&mut self) {
        let offered = self.world.book.refs.lock().unwrap().choose(&mut self.random).cloned();
        offered.into_iter().for_each(|offered| self.hold(offered));
    }

    fn order(&mut self, holder: usize) -> Order {
        let holder = &mut self.holders[holder];
        holder.sent += 1;
        let deed = match self.random.random_range(0..40) {
            0..14 => Deed::Reply,
            14..18 => Deed::Wait,
            18..20 => Deed::Keep,
            20..22 => Deed::Drop,
            22..24 => Deed::Fail,
            24..26 => Deed::Panic,
            26..30 => Deed::Spawn,
            30..33 => Deed::Watch,
            33..36 => Deed::Relay,
            36..39 => Deed::Meet,
            _ if self.world.calm => Deed::Reply,
            _ => Deed::Stop,
        };
        let who = match deed {
            Deed::Meet => self.world.book.refs.lock().unwrap().choose(&mut self.random).cloned(),
            _ => None,
        };
        Order {
            holder: holder.id,
            number: holder.sent,
            deed: deed.into(),
            millis: self.random.random_range(0..3),
            who: who.and_then(|who| EndpointRef::try_from(&who).ok()),
            payload: vec![0; self.random.random_range(0..300)].into(),
        }
    }

    fn ask(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.holders.len());
        let order = self.order(place);
        let holder = &self.holders[place];
        let limit = match order.deed() {
            // Only its timeout ends such an ask.
            Deed::Watch => Duration::from_millis(50),
            _ => *LIMITS.choose(&mut self.random).unwrap(),
        };
        let certain = self.world.calm
            && holder.kind != Kind::Dropping
            && matches!(order.deed(), Deed::Reply | Deed::Wait | Deed::Spawn)
            && limit == LONG;
        let mut expected =
            Expected { deed: order.deed(), mark: (order.holder, order.number), limit, certain };
        let asked = Instant::now();
        let mut ask = holder.endpoint.ask_with_timeout(WorkDo(order), limit);
        match self.random.random_range(0..8) {
            0 => {
                self.world.book.happened("an ask was dropped");
                drop(ask);
            }
            1 => {
                expected.certain = false;
                self.aborts.push(ask.abort_handle());
                self.wait_for(ask, asked, expected);
            }
            2 => {
                // The ask is cancelled within 3 ms, whether it has been polled or not.
                let patience = Duration::from_millis(self.random.random_range(0..3));
                self.asks.spawn(async move { drop(timeout(patience, ask).await) });
            }
            _ => self.wait_for(ask, asked, expected),
        }
    }

    fn wait_for(&mut self, ask: AskFuture<Done>, asked: Instant, expected: Expected) {
        let book = Arc::clone(&self.world.book);
        self.asks.spawn(async move {
            match timeout(expected.limit + SLACK, ask).await {
                Ok(outcome) => {
                    book.happened(if outcome.is_ok() {
                        "an ask succeeded"
                    } else {
                        "an ask failed"
                    });
                    expected.check(&book, outcome, asked.elapsed());
                }
                Err(_) => book.complain(format!("an ask does not complete: {expected:?}")),
            }
        });
    }

    /// Returns true if every accepted message of this holder must be handled.
    fn owed(&self, place: usize) -> bool {
        self.world.calm && self.holders[place].kind != Kind::Dropping
    }

    fn send(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.holders.len());
        for _ in 0..self.random.random_range(1..12) {
            let order = self.order(place);
            let mark = (order.holder, order.number);
            let endpoint = &self.holders[place].endpoint;
            let sent = if self.random.random() {
                endpoint.send(WorkTell(order)).map_err(RpcError::from)
            } else {
                endpoint.send(WorkDo(order)).map_err(RpcError::from)
            };
            match sent {
                Ok(()) if self.owed(place) => self.world.book.owe(mark),
                Err(error) if self.world.calm && error.kind() != ErrorKind::Limit => {
                    self.world.book.complain(format!("a send failed: {error}"));
                }
                _ => {}
            }
        }
    }

    async fn send_wait(&mut self) {
        if self.holders.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.holders.len());
        let order = self.order(place);
        let mark = (order.holder, order.number);
        let patience = if self.random.random_bool(0.2) { Duration::from_millis(1) } else { SOON };
        match timeout(patience, self.holders[place].endpoint.send_wait(WorkTell(order))).await {
            Ok(Ok(())) if self.owed(place) => self.world.book.owe(mark),
            Ok(Err(error)) if self.world.calm => {
                self.world.book.complain(format!("a send failed: {}", error.error()));
            }
            Err(_) if patience == SOON => self.world.book.complain("a send_wait does not complete"),
            _ => {}
        }
    }

    async fn answer_a_kept_one(&mut self) {
        let Some(kept) = self.world.book.take_kept() else { return };
        match self.random.random_range(0..4) {
            0 => drop(kept),
            1 => kept.send_failure(RpcError::application(crate::ON_PURPOSE)),
            2 if kept.is_cancelled() => {
                if timeout(SOON, kept.cancelled()).await.is_err() {
                    self.world.book.complain("cancelled() does not complete although is_cancelled() is true");
                }
            }
            _ => drop(kept.reply(Done::default())),
        }
    }

    fn abort_one(&mut self) {
        if let Some(abort) = self.aborts.pop() {
            abort.abort(crate::ON_PURPOSE);
        }
    }

    fn replace_an_endpoint(&mut self) {
        let home: &Home = self.world.homes.choose(&mut self.random).unwrap();
        let kind = *self.world.kinds().choose(&mut self.random).unwrap();
        let offered = self.world.book.refs.lock().unwrap().choose(&mut self.random).cloned();
        offered.into_iter().for_each(|offered| home.env().stop(&offered));
        // The setup fails if another endpoint with this name is still registered.
        if let Ok(endpoint) = kind.setup(&home.env(), &self.world.book) {
            self.world.book.happened("an endpoint was replaced");
            self.world.book.offer(endpoint);
        }
    }

    fn cut(&mut self) {
        let home: &Home = self.world.homes.choose(&mut self.random).unwrap();
        if let Some(proxy) = &home.proxy {
            self.world.book.happened("connections were closed");
            proxy.cut();
        }
    }
}

impl Expected {
    fn check(&self, book: &Book, outcome: Result<Done, RpcError>, took: Duration) {
        let Self { deed, mark, limit, certain } = self;
        match outcome {
            // Another actor replied to a kept context.
            Ok(done) if *deed == Deed::Keep && done == Done::default() => {}
            Ok(done) if (done.holder, done.number) != *mark => {
                book.complain(format!("{self:?} got the reply {done:?}"));
            }
            Ok(_) => {}
            Err(error) if *certain && error.kind() != ErrorKind::Limit => {
                book.complain(format!("{self:?} failed: {error:?}"));
            }
            // The nested ask of a handler has a shorter timeout.
            Err(error) if error.kind() == ErrorKind::Timeout && *deed != Deed::Relay => {
                if took < *limit || *limit == LONG {
                    book.complain(format!("{self:?} failed after {took:?}: {error}"));
                }
            }
            Err(_) => {}
        }
    }
}

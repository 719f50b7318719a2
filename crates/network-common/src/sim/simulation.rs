//! [`Simulation`]: the faults, the clock and the trace of a simulated network.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::{SegmentContent, SimConnection};
use super::faults::FaultCounts;
use super::host::{Listeners, SimHost};
use super::link::LinkOptions;
use super::state::SimState;
use super::trace::TraceEvent;

/// The simulated time after which a run is regarded as stalled.
const LONGEST_RUN: Duration = Duration::from_secs(30 * 24 * 3600);

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread runs a simulation, so that nothing may use other threads.
pub(crate) fn is_simulated() -> bool {
    IS_SIMULATED.get()
}

/// A network of hosts with latency and faults, and a clock that passes only while all tasks wait.
///
/// [`run`](Self::run) runs everything on the calling thread. Time is simulated: an hour of waiting
/// takes no time. Two runs with the same seed and the same code make the same steps, so
/// [`trace_hash`](Self::trace_hash) is the same. Random decisions come from the seed; encryption
/// keys do not, so the trace contains lengths and no bytes.
///
/// Each host has an IP address and a [`network`](Self::network), which servers and clients use in
/// place of sockets. Faults act on hosts, or on the connections from one host to another. A code
/// under test must not use other threads, `std::time::Instant` or `tokio::select!` without `biased`
/// if it is to be repeatable. Work that would run on blocking threads runs in place.
///
/// ```
/// use network_common::sim::Simulation;
/// use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
/// use std::time::Duration;
///
/// let (server_ip, client_ip) = ([10, 0, 0, 1], [10, 0, 0, 2]);
/// let simulation = Simulation::new(42);
/// simulation.run(async {
///     let context = TransportContext::new(TransportConf::new("test"), NoOpRpcHandler::new());
///     let server = context.clone().memory_network(&simulation.network(server_ip));
///     let server = server.create_server("10.0.0.1:7337").await.unwrap();
///     let factory =
///         context.memory_network(&simulation.network(client_ip)).create_client_factory();
///     let client = factory.create_client(server.local_addr()).await.unwrap();
///
///     simulation.partition(server_ip, client_ip);
///     let request = client.send_rpc("held back");
///     assert!(tokio::time::timeout(Duration::from_secs(60), request).await.is_err());
///     assert!(simulation.now() >= Duration::from_secs(60));
/// });
/// ```
#[derive(Clone)]
pub struct Simulation {
    state: Arc<Mutex<SimState>>,
    listeners: Arc<Mutex<Listeners>>,
    seed: u64,
}

impl Simulation {
    /// Creates a network without hosts.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: Arc::new(Mutex::new(SimState::new(seed))), listeners: Arc::default(), seed }
    }

    /// Runs `future` and the tasks that it spawns on this thread, until `future` completes.
    ///
    /// Tasks that are still running then are dropped. The clock starts at 0 with each call.
    ///
    /// # Panics
    /// If it is called in a tokio runtime, if `future` panics, or if it has not completed after 30
    /// days of simulated time, which usually means that it waits for something that cannot happen.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O needs no resource of the system");
        let _active = ActiveSimulation::enter();
        let outer_random = fastrand::Rng::new();
        fastrand::seed(self.seed);
        let output = runtime.block_on(async {
            self.state.lock().start = Some(Instant::now());
            tokio::select! {
                biased;
                output = future => output,
                () = tokio::time::sleep(LONGEST_RUN) => {
                    panic!("the simulation has not completed after {LONGEST_RUN:?}");
                }
            }
        });
        // The tasks end before the thread leaves the simulation.
        drop(runtime);
        fastrand::seed(outer_random.get_seed());
        output
    }

    pub(crate) fn host(&self, ip: IpAddr) -> SimHost {
        let (state, listeners) = (Arc::clone(&self.state), Arc::clone(&self.listeners));
        SimHost { state, listeners, ip }
    }

    /// Sets latency and bandwidth of all links without options of their own.
    pub fn set_default_link(&self, options: LinkOptions) {
        self.state.lock().default_link = options;
    }

    /// Sets latency and bandwidth from one host to another, in this direction only.
    pub fn set_link(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>, options: LinkOptions) {
        self.state.lock().links.insert((from.into(), to.into()), options);
    }

    /// Sets the addresses that a host name resolves to; none lets look-ups fail.
    pub fn set_name(&self, name: &str, addresses: impl IntoIterator<Item = impl Into<IpAddr>>) {
        let addresses = addresses.into_iter().map(Into::into).collect();
        self.state.lock().names.insert(name.to_owned(), addresses);
    }

    /// Holds back what one host sends to another, in this direction only.
    ///
    /// As with TCP nothing is lost: bytes arrive after [`unblock`](Self::unblock). New connections
    /// between the hosts wait.
    pub fn block(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>) {
        let (from, to) = (from.into(), to.into());
        let mut state = self.state.lock();
        state.blocked.entry((from, to)).or_insert_with(Instant::now);
        state.record(&TraceEvent::Fault { name: "block", from, to });
    }

    /// Ends a [`block`](Self::block) of this direction.
    pub fn unblock(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>) {
        let (from, to) = (from.into(), to.into());
        self.change("unblock", from, to, |state| {
            state.blocked.remove(&(from, to));
        });
    }

    /// Holds back what two hosts send to each other.
    pub fn partition(&self, first: impl Into<IpAddr>, second: impl Into<IpAddr>) {
        let (first, second) = (first.into(), second.into());
        self.block(first, second);
        self.block(second, first);
    }

    /// Ends a [`partition`](Self::partition) of two hosts.
    pub fn heal(&self, first: impl Into<IpAddr>, second: impl Into<IpAddr>) {
        let (first, second) = (first.into(), second.into());
        self.unblock(first, second);
        self.unblock(second, first);
    }

    /// Lets a host read nothing from its connections, as if its process were suspended.
    pub fn pause_reads(&self, host: impl Into<IpAddr>) {
        let host = host.into();
        let mut state = self.state.lock();
        state.paused.insert(host);
        state.record(&TraceEvent::Fault { name: "pause_reads", from: host, to: host });
    }

    /// Ends [`pause_reads`](Self::pause_reads).
    pub fn resume_reads(&self, host: impl Into<IpAddr>) {
        let host = host.into();
        self.change("resume_reads", host, host, |state| {
            state.paused.remove(&host);
        });
    }

    /// Limits how many bytes per second a host reads from each connection; `None` is no limit.
    pub fn set_read_rate(&self, host: impl Into<IpAddr>, bytes_per_second: Option<u64>) {
        let host = host.into();
        self.change("set_read_rate", host, host, |state| match bytes_per_second {
            Some(rate) => drop(state.read_rates.insert(host, rate.max(1))),
            None => drop(state.read_rates.remove(&host)),
        });
    }

    /// Resets all connections between two hosts at once; returns their number.
    ///
    /// Bytes that were not read are lost at both ends.
    pub fn reset_connections(&self, first: impl Into<IpAddr>, second: impl Into<IpAddr>) -> usize {
        let (first, second) = (first.into(), second.into());
        self.reset_where("reset_connections", first, second, |one| one.is_between(first, second))
    }

    /// Resets all connections of a host at once, as if its process were killed.
    ///
    /// Returns the number of connections. The test drops the servers and clients of the host.
    pub fn reset_host(&self, host: impl Into<IpAddr>) -> usize {
        let host = host.into();
        self.reset_where("reset_host", host, host, |one| one.end_at(host).is_some())
    }

    /// Makes a host disappear without a notice, as if it had lost its power.
    ///
    /// Its peers get no more bytes, and no error either: their connections are half-open. New
    /// connections to it wait. The test drops the servers and clients of the host.
    pub fn crash(&self, host: impl Into<IpAddr>) {
        let host = host.into();
        let mut state = self.state.lock();
        if state.crashed.insert(host) {
            let is_affected = |one: &&SimConnection| !one.is_reset && one.end_at(host).is_some();
            state.faults.half_open += state.connections.values().filter(is_affected).count() as u64;
            state.record(&TraceEvent::Fault { name: "crash", from: host, to: host });
        }
    }

    /// Makes a crashed host reachable again.
    ///
    /// The host does not know its earlier connections: it resets each one when a peer sends on it.
    pub fn restart(&self, host: impl Into<IpAddr>) {
        let host = host.into();
        self.change("restart", host, host, |state| {
            if !state.crashed.remove(&host) {
                return;
            }
            let now = Instant::now();
            for connection in state.connections.values_mut() {
                let Some(end) = connection.end_at(host).filter(|_| !connection.is_reset) else {
                    continue;
                };
                connection.ends[end].is_stale = true;
                connection.pipes[end].discard();
                let was_sending = connection.pipes[1 - end].has_unread_bytes();
                connection.pipes[1 - end].discard();
                if was_sending {
                    state.faults.stale_resets += 1;
                    let _ = connection.pipes[end].push(now, SegmentContent::Reset);
                }
            }
        });
    }

    /// Returns the simulated time since the start of [`run`](Self::run).
    #[must_use]
    pub fn now(&self) -> Duration {
        self.state.lock().start.map_or(Duration::ZERO, |start| start.elapsed())
    }

    /// Returns the number of connections of which an end is open.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.state.lock().connections.len()
    }

    /// Returns how often each kind of fault has affected a connection.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.state.lock().faults
    }

    /// Adds a text to the trace, for example a step of the test.
    pub fn note(&self, text: impl Into<String>) {
        self.state.lock().record(&TraceEvent::Note(text.into()));
    }

    /// Returns a hash of all events so far: their times, kinds, hosts and lengths.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.state.lock().trace.hash()
    }

    /// Keeps a line of text for each later event.
    pub fn record_timeline(&self) {
        self.state.lock().trace.record_lines();
    }

    /// Returns the recorded lines: simulated time and event.
    #[must_use]
    pub fn timeline(&self) -> Vec<String> {
        self.state.lock().trace.lines()
    }

    /// Changes the state, and wakes all readers, which may read more now.
    fn change(
        &self,
        name: &'static str,
        from: IpAddr,
        to: IpAddr,
        change: impl FnOnce(&mut SimState),
    ) {
        let wakers: Vec<Waker> = {
            let mut state = self.state.lock();
            state.record(&TraceEvent::Fault { name, from, to });
            change(&mut state);
            let pipes = state.connections.values_mut().flat_map(|one| &mut one.pipes);
            pipes.filter_map(|pipe| pipe.reader.take()).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    fn reset_where(
        &self,
        name: &'static str,
        from: IpAddr,
        to: IpAddr,
        is_affected: impl Fn(&SimConnection) -> bool,
    ) -> usize {
        let (count, wakers) = {
            let mut state = self.state.lock();
            state.record(&TraceEvent::Fault { name, from, to });
            let is_affected = |one: &SimConnection| !one.is_reset && is_affected(one);
            let affected: Vec<u64> = state
                .connections
                .iter()
                .filter(|(_, one)| is_affected(one))
                .map(|(id, _)| *id)
                .collect();
            state.faults.resets += affected.len() as u64;
            let wakers: Vec<Waker> = affected.iter().flat_map(|id| state.reset(*id)).collect();
            (affected.len(), wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
        count
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("seed", &self.seed).finish_non_exhaustive()
    }
}

/// Marks the thread as simulated until it is dropped.
struct ActiveSimulation;

impl ActiveSimulation {
    fn enter() -> Self {
        assert!(!IS_SIMULATED.replace(true), "this thread runs a simulation already");
        Self
    }
}

impl Drop for ActiveSimulation {
    fn drop(&mut self) {
        IS_SIMULATED.set(false);
    }
}

//! [`SimState`]: hosts, links, connections and faults of a simulated network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use super::connection::SimConnection;
use super::faults::FaultCounts;
use super::link::LinkOptions;
use super::trace::{Trace, TraceEvent};

/// Hosts, links, connections and faults. Ordered maps, so that a run can be repeated.
pub(super) struct SimState {
    pub(super) random: fastrand::Rng,
    /// `None` before the clock of the simulation runs.
    pub(super) start: Option<Instant>,
    pub(super) trace: Trace,
    pub(super) faults: FaultCounts,
    pub(super) connections: BTreeMap<u64, SimConnection>,
    pub(super) default_link: LinkOptions,
    pub(super) links: BTreeMap<(IpAddr, IpAddr), LinkOptions>,
    /// The blocked directions, with the time since when.
    pub(super) blocked: BTreeMap<(IpAddr, IpAddr), Instant>,
    pub(super) crashed: BTreeSet<IpAddr>,
    pub(super) paused: BTreeSet<IpAddr>,
    pub(super) read_rates: BTreeMap<IpAddr, u64>,
    pub(super) names: BTreeMap<String, Vec<IpAddr>>,
    opened_connections: u64,
    assigned_ports: BTreeMap<IpAddr, u16>,
}

impl SimState {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            start: None,
            trace: Trace::default(),
            faults: FaultCounts::default(),
            connections: BTreeMap::new(),
            default_link: LinkOptions::default(),
            links: BTreeMap::new(),
            blocked: BTreeMap::new(),
            crashed: BTreeSet::new(),
            paused: BTreeSet::new(),
            read_rates: BTreeMap::new(),
            names: BTreeMap::new(),
            opened_connections: 0,
            assigned_ports: BTreeMap::new(),
        }
    }

    /// Adds a connection, and returns its number.
    pub(super) fn open(&mut self, client: SocketAddr, server: SocketAddr) -> u64 {
        let id = self.opened_connections;
        self.opened_connections += 1;
        self.connections.insert(id, SimConnection::new(client, server, Instant::now()));
        self.record(&TraceEvent::Connected { id, client, server });
        id
    }

    /// Adds an event at the current time to the trace.
    pub(super) fn record(&mut self, event: &TraceEvent) {
        let at = self.start.map_or(Duration::ZERO, |start| start.elapsed());
        self.trace.add(at, event);
    }

    /// Returns whether nothing arrives at `to` from `from`.
    pub(super) fn is_blocked(&self, from: IpAddr, to: IpAddr) -> bool {
        self.blocked.contains_key(&(from, to))
            || self.crashed.contains(&from)
            || self.crashed.contains(&to)
    }

    pub(super) fn latency(&mut self, from: IpAddr, to: IpAddr) -> Duration {
        if from == to {
            return Duration::ZERO;
        }
        let link = self.links.get(&(from, to)).unwrap_or(&self.default_link);
        link.random_latency(&mut self.random)
    }

    /// Returns how long the sender is busy with `count` bytes.
    pub(super) fn transmission_time(&self, from: IpAddr, to: IpAddr, count: usize) -> Duration {
        self.links.get(&(from, to)).unwrap_or(&self.default_link).transmission_time(count)
    }

    /// Resets a connection, and returns the tasks to wake.
    pub(super) fn reset(&mut self, id: u64) -> Vec<Waker> {
        let Some(connection) = self.connections.get_mut(&id).filter(|one| !one.is_reset) else {
            return Vec::new();
        };
        let wakers = connection.reset();
        self.record(&TraceEvent::Reset { id });
        wakers
    }

    /// Returns an ephemeral port of a host.
    pub(super) fn next_port(&mut self, ip: IpAddr) -> u16 {
        let assigned = self.assigned_ports.entry(ip).or_default();
        *assigned = assigned.checked_add(1).unwrap_or(1);
        // 32 768 is the first ephemeral port of Linux.
        32_768 | *assigned
    }
}

//! A play: a list of timed steps that a seed determines.

use std::fmt::Debug;
use std::time::Duration;

use network_common::sim::{LinkOptions, Simulation};

/// The number of hosts in a play: hosts 1 and 2 are servers, hosts 3 and 4 clients.
pub(crate) const HOSTS: u8 = 4;
pub(crate) const SERVERS: u8 = 2;

/// Returns the IP address of a host.
pub(crate) fn ip(host: u8) -> [u8; 4] {
    [10, 0, 0, host]
}

/// Returns the name of a host, which resolves to its address.
pub(crate) fn name(host: u8) -> String {
    format!("host{host}.example")
}

/// A step, and when it begins after the start of the play.
#[derive(Clone, Debug)]
pub(crate) struct Step<A> {
    pub(crate) at: Duration,
    pub(crate) action: A,
}

/// A fault of the network, or of one host.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Holds back one direction for a time.
    Block {
        from: u8,
        to: u8,
        millis: u64,
    },
    Partition {
        first: u8,
        second: u8,
        millis: u64,
    },
    Reset {
        first: u8,
        second: u8,
    },
    /// The host reads nothing for a time.
    Pause {
        host: u8,
        millis: u64,
    },
    /// The host reads slowly for a time.
    Slow {
        host: u8,
        millis: u64,
    },
    /// The name of the host does not resolve for a time.
    NoName {
        host: u8,
        millis: u64,
    },
}

impl Fault {
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        let server = random.u8(1..=SERVERS);
        let client = random.u8(SERVERS + 1..=HOSTS);
        // Most faults are short; a few exceed the timeouts of requests and of idle connections.
        let millis = match random.u8(0..10) {
            0 => random.u64(100_000..300_000),
            1..4 => random.u64(1_000..20_000),
            _ => random.u64(1..500),
        };
        match random.u8(0..9) {
            0 => Self::Block { from: server, to: client, millis },
            1 => Self::Block { from: client, to: server, millis },
            2 => Self::Partition { first: server, second: client, millis },
            3..6 => Self::Reset { first: server, second: client },
            6 => Self::Pause { host: random.u8(1..=HOSTS), millis },
            7 => Self::NoName { host: server, millis },
            _ => Self::Slow { host: random.u8(1..=HOSTS), millis },
        }
    }

    /// Starts the fault. A task ends it, if it has a duration.
    pub(crate) fn start(self, simulation: &Simulation) {
        let end_after = |millis, end: Box<dyn FnOnce(&Simulation) + Send>| {
            let simulation = simulation.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(millis)).await;
                end(&simulation);
            });
        };
        match self {
            Self::Block { from, to, millis } => {
                simulation.block(ip(from), ip(to));
                end_after(millis, Box::new(move |one| one.unblock(ip(from), ip(to))));
            }
            Self::Partition { first, second, millis } => {
                simulation.partition(ip(first), ip(second));
                end_after(millis, Box::new(move |one| one.heal(ip(first), ip(second))));
            }
            Self::Reset { first, second } => {
                simulation.reset_connections(ip(first), ip(second));
            }
            Self::Pause { host, millis } => {
                simulation.pause_reads(ip(host));
                end_after(millis, Box::new(move |one| one.resume_reads(ip(host))));
            }
            Self::Slow { host, millis } => {
                simulation.set_read_rate(ip(host), Some(20_000));
                end_after(millis, Box::new(move |one| one.set_read_rate(ip(host), None)));
            }
            Self::NoName { host, millis } => {
                simulation.set_name(&name(host), [] as [[u8; 4]; 0]);
                end_after(millis, Box::new(move |one| one.set_name(&name(host), [ip(host)])));
            }
        }
    }

    /// Returns whether connections may end because their peer is silent for 120 s.
    pub(crate) fn is_long(self) -> bool {
        match self {
            Self::Block { millis, .. }
            | Self::Partition { millis, .. }
            | Self::Pause { millis, .. }
            | Self::Slow { millis, .. }
            | Self::NoName { millis, .. } => millis > 90_000,
            Self::Reset { .. } => false,
        }
    }

    /// Returns whether the fault ends the connections between the two hosts at once.
    pub(crate) fn resets(self, one: u8, other: u8) -> bool {
        let pair = (one.min(other), one.max(other));
        matches!(self, Self::Reset { first, second } if (first, second) == pair)
    }
}

/// A way in which a server ends; another one then starts at its address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ServerEnd {
    /// It shuts down.
    Restart,
    /// It ends at once with its connections; the next one starts after a time.
    Kill { millis: u64 },
    /// Its host disappears for a time.
    Crash { millis: u64 },
}

impl ServerEnd {
    /// Chooses an end by `roll`, a random number from 0 to 4.
    pub(crate) fn of_roll(roll: u8, random: &mut fastrand::Rng) -> Self {
        match roll {
            0..2 => Self::Restart,
            2..4 => Self::Kill { millis: random.u64(0..3_000) },
            _ => Self::Crash { millis: random.u64(0..40_000) },
        }
    }
}

/// Generates the steps of a seed; `action` chooses each one.
pub(crate) fn generate<A>(
    seed: u64,
    mut action: impl FnMut(&mut fastrand::Rng) -> A,
) -> Vec<Step<A>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut at = Duration::ZERO;
    let steps = random.usize(20..90);
    (0..steps)
        .map(|_| {
            let pause = match random.u8(0..20) {
                0 => random.u64(0..30_000),
                1..10 => random.u64(0..30),
                _ => 0,
            };
            at += Duration::from_millis(pause);
            Step { at, action: action(&mut random) }
        })
        .collect()
}

/// Chooses the links between the hosts, and names the hosts.
pub(crate) fn set_links(seed: u64, simulation: &Simulation) {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x11_4e_75);
    for host in 1..=HOSTS {
        simulation.set_name(&name(host), [ip(host)]);
    }
    let millis = |count| Duration::from_millis(count);
    simulation.set_default_link(match random.u8(0..4) {
        0 => LinkOptions::new().latency(millis(30)..=millis(60)),
        1 => LinkOptions::new().bandwidth(2 << 20),
        2 => LinkOptions::new().latency(millis(0)..=millis(0)),
        _ => LinkOptions::new(),
    });
}

/// Runs each step at its time. Times are never earlier than those of the step before.
pub(crate) async fn perform<A: Debug>(
    simulation: &Simulation,
    steps: &[Step<A>],
    mut act: impl AsyncFnMut(&A),
) {
    let start = tokio::time::Instant::now();
    for step in steps {
        tokio::time::sleep_until(start + step.at).await;
        simulation.note(format!("step {:?}", step.action));
        act(&step.action).await;
    }
}

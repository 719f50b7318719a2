//! The steps of a play of network-common.

use crate::play::{self, Fault, HOSTS, SERVERS, ServerEnd, Step};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Echo {
        size: usize,
    },
    /// Registers a stream of chunks, and fetches all of them at once.
    Chunks {
        count: u8,
        size: usize,
    },
    /// Reads a stream; drops it after some pieces if `pieces` is given.
    Stream {
        size: usize,
        pieces: Option<usize>,
    },
    Upload {
        size: usize,
    },
    /// The handler panics, drops its callback, or never replies, by the number.
    Misbehave(u8),
    /// Connects, unless an attempt has just failed.
    FastFail,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum BulkAction {
    Request {
        client: u8,
        server: u8,
        request: Request,
        /// The time until the request is dropped, in milliseconds.
        cancel_after: Option<u64>,
    },
    Fault(Fault),
    EndServer {
        server: u8,
        end: ServerEnd,
    },
}

/// Returns the steps of a seed. Every fourth play has no faults.
pub(crate) fn generate_steps(seed: u64) -> Vec<Step<BulkAction>> {
    let has_faults = !seed.is_multiple_of(4);
    play::generate(seed, |random| random_action(random, has_faults))
}

fn random_size(random: &mut fastrand::Rng) -> usize {
    match random.u8(0..10) {
        0 => 0,
        1..8 => random.usize(1..5_000),
        8 => random.usize(60_000..70_000),
        _ => random.usize(100_000..900_000),
    }
}

fn random_action(random: &mut fastrand::Rng, has_faults: bool) -> BulkAction {
    let server = random.u8(1..=SERVERS);
    match random.u8(0..100) {
        84..95 if has_faults => BulkAction::Fault(Fault::random(random)),
        roll @ 95.. if has_faults => {
            BulkAction::EndServer { server, end: ServerEnd::of_roll(roll - 95, random) }
        }
        choice => BulkAction::Request {
            client: random.u8(SERVERS + 1..=HOSTS),
            server,
            request: match choice {
                0..30 => Request::Echo { size: random_size(random) },
                30..50 => Request::Chunks { count: random.u8(0..20), size: random_size(random) },
                50..65 => Request::Stream {
                    size: random_size(random),
                    pieces: (random.u8(0..4) == 0).then(|| random.usize(0..3)),
                },
                65..78 => Request::Upload { size: random_size(random) },
                78..82 => Request::Misbehave(random.u8(0..3)),
                _ => Request::FastFail,
            },
            cancel_after: (random.u8(0..8) == 0).then(|| random.u64(0..50)),
        },
    }
}

//! The steps of a play of rpc-core.

use super::messages::order::Behaviour;
use crate::play::{self, Fault, HOSTS, SERVERS, ServerEnd, Step};

/// The endpoints that each server has.
pub(super) const ENDPOINTS: [&str; 4] = ["serial", "concurrent", "small", "isolated"];

/// A ref: the host that uses it, the host of the endpoint, and the endpoint.
pub(crate) type HolderKey = (u8, u8, usize);

#[derive(Clone, Debug)]
pub(crate) enum RpcAction {
    LookUp(HolderKey),
    Ask {
        holder: HolderKey,
        behaviour: Behaviour,
        millis: u32,
        timeout: u64,
        /// The time until the ask is dropped, in milliseconds.
        cancel_after: Option<u64>,
        payload: usize,
    },
    Send {
        holder: HolderKey,
        count: usize,
        payload: usize,
    },
    SendWait {
        holder: HolderKey,
        count: usize,
    },
    /// Replies to the oldest kept context.
    ReplyToKept,
    /// Stops an endpoint and registers another one under its name.
    Replace {
        server: u8,
        endpoint: usize,
    },
    Fault(Fault),
    EndServer {
        server: u8,
        end: ServerEnd,
    },
}

/// Returns the steps of a seed. Every fourth play has no faults.
pub(crate) fn generate_steps(seed: u64) -> Vec<Step<RpcAction>> {
    let has_faults = !seed.is_multiple_of(4);
    play::generate(seed, |random| random_action(random, has_faults))
}

fn random_holder(random: &mut fastrand::Rng) -> HolderKey {
    let client = random.u8(SERVERS + 1..=HOSTS);
    let server = random.u8(1..=SERVERS);
    // A server may use its own endpoints, which is a local call, and those of the other server.
    let from = if random.u8(0..6) == 0 { 1 } else { client };
    (from, server, random.usize(0..ENDPOINTS.len()))
}

/// Returns a number of messages; one of eight exceeds the queue of a route.
fn random_count(random: &mut fastrand::Rng) -> usize {
    if random.u8(0..8) == 0 { random.usize(51..90) } else { random.usize(1..12) }
}

fn random_action(random: &mut fastrand::Rng, has_faults: bool) -> RpcAction {
    let holder = random_holder(random);
    let server = random.u8(1..=SERVERS);
    match random.u8(0..100) {
        0..20 => RpcAction::LookUp(holder),
        20..55 => RpcAction::Ask {
            holder,
            behaviour: match random.u8(0..20) {
                0..9 => Behaviour::Reply,
                9..12 => Behaviour::Wait,
                12..14 => Behaviour::Spawn,
                14..16 => Behaviour::Keep,
                16 => Behaviour::Drop,
                17 => Behaviour::Fail,
                18 => Behaviour::Panic,
                _ => Behaviour::Wait,
            },
            millis: random.u32(0..50),
            timeout: if random.u8(0..4) == 0 { random.u64(1..200) } else { 30_000 },
            cancel_after: (random.u8(0..6) == 0).then(|| random.u64(0..40)),
            payload: if random.u8(0..10) == 0 { random.usize(0..100_000) } else { 10 },
        },
        55..68 => RpcAction::Send { holder, count: random_count(random), payload: 20 },
        68..75 => RpcAction::SendWait { holder, count: random_count(random) },
        75..80 => RpcAction::ReplyToKept,
        _ if !has_faults => RpcAction::LookUp(holder),
        80..84 => RpcAction::Replace { server, endpoint: random.usize(0..ENDPOINTS.len()) },
        84..95 => RpcAction::Fault(Fault::random(random)),
        roll => RpcAction::EndServer { server, end: ServerEnd::of_roll(roll - 95, random) },
    }
}

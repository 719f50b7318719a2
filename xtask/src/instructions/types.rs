//! The types of rpc-core whose methods a remote ask executes.
//!
//! A type counts when a method of it, inlined or not, executes once more for every few operations.
//! It is on the path of the request when the method is reached from `RpcEndpointRef::ask` in the
//! client, or in the server without passing through the endpoint's `receive`: what is reached only
//! through that belongs to the reply.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::End;
use super::callgrind::CompiledFunction;
use super::profile::Profile;
use super::symbols::without_generics;

/// Below this many instructions per operation a type has no part in the operation.
const NEGLIGIBLE: f64 = 0.1;
const CRATE: &str = "rpc_core::";

#[derive(Default)]
struct Row {
    /// Instructions per operation in the client and in the server.
    client: f64,
    server: f64,
    requests: bool,
}

/// Prints the types of all `profiles` of a remote ask.
pub(super) fn print(profiles: &[Profile]) {
    let mut rows = BTreeMap::<String, Row>::new();
    let mut each = Vec::new();
    for profile in profiles {
        let executed = executed_types(profile, |_, frames| 0..frames.len());
        let on_path = match profile.end {
            End::Server => server_path(profile),
            End::Client | End::Whole => client_path(profile),
        };
        each.push((profile.end, on_path.len(), executed.len()));
        for (name, cost) in executed {
            let row = rows.entry(name).or_default();
            *if profile.end == End::Server { &mut row.server } else { &mut row.client } += cost;
        }
        for name in on_path {
            rows.entry(name).or_default().requests = true;
        }
    }
    println!("\ntypes of rpc-core in a remote ask, with the instructions per operation inside them");
    println!("{:>8} {:>8}  on the path of the request", "client", "server");
    for (name, Row { client, server, requests }) in &rows {
        println!("{client:8.1} {server:8.1}  {:3} {name}", if *requests { "yes" } else { "" });
    }
    for (end, on_path, executed) in each {
        println!("{end:?}: {on_path} types on the path of the request, {executed} in all");
    }
    let on_path = rows.values().filter(|row| row.requests).count();
    println!("both: {on_path} types on the path of the request, {} in all", rows.len());
}

/// Returns the types in the frames that `part` selects at each address, with the instructions of
/// which they are the innermost type.
fn executed_types(
    profile: &Profile,
    part: impl Fn(&CompiledFunction, &[String]) -> std::ops::Range<usize>,
) -> BTreeMap<String, f64> {
    let mut inside = HashMap::<String, f64>::new();
    let mut innermost = HashMap::<String, f64>::new();
    for ((function, address), cost) in &profile.costs {
        let frames = profile.frames(function, *address);
        let types = frames[part(function, &frames)].iter().filter_map(|frame| type_of(frame));
        let types: Vec<_> = types.collect();
        if let Some(name) = types.first() {
            *innermost.entry(name.clone()).or_default() += cost;
        }
        for name in types.into_iter().collect::<HashSet<_>>() {
            *inside.entry(name).or_default() += cost;
        }
    }
    let executed = inside.into_iter().filter(|(_, cost)| *cost >= NEGLIGIBLE);
    executed.map(|(name, _)| (innermost.get(&name).copied().unwrap_or(0.0), name)).map(swap).collect()
}

fn swap<A, B>((one, other): (A, B)) -> (B, A) {
    (other, one)
}

/// Returns the types that `RpcEndpointRef::ask` reaches.
fn client_path(profile: &Profile) -> HashSet<String> {
    let below_ask = |frames: &[String]| frames.iter().position(|frame| is_ask(frame));
    let mut starts = Vec::new();
    for (function, costs) in &profile.graph {
        for (address, callee) in &costs.calls {
            if below_ask(&profile.frames(function, *address)).is_some() {
                starts.push(callee);
            }
        }
    }
    let reached = reachable(profile, starts, |_| true);
    let part = |function: &CompiledFunction, frames: &[String]| match below_ask(frames) {
        _ if reached.contains(function) => 0..frames.len(),
        Some(ask) => 0..ask + 1,
        None => 0..0,
    };
    executed_types(profile, part).into_keys().collect()
}

/// Returns the types that the server reaches without passing through the endpoint.
fn server_path(profile: &Profile) -> HashSet<String> {
    let called: HashSet<_> =
        profile.graph.values().flat_map(|costs| costs.calls.iter().map(|(_, callee)| callee)).collect();
    let starts = profile.graph.keys().filter(|function| !called.contains(function)).collect();
    let reached = reachable(profile, starts, |frames| !frames.iter().any(|frame| is_handler(frame)));
    let part = |function: &CompiledFunction, frames: &[String]| {
        let handler = frames.iter().rposition(|frame| is_handler(frame));
        if reached.contains(function) { handler.map_or(0, |at| at + 1)..frames.len() } else { 0..0 }
    };
    executed_types(profile, part).into_keys().collect()
}

/// Returns the functions that are called from `starts`, through call sites that `follow` accepts.
fn reachable<'a>(
    profile: &'a Profile,
    starts: Vec<&'a CompiledFunction>,
    follow: impl Fn(&[String]) -> bool,
) -> HashSet<&'a CompiledFunction> {
    let mut reached = HashSet::new();
    let mut open = starts;
    while let Some(function) = open.pop() {
        if !reached.insert(function) {
            continue;
        }
        let calls = profile.graph.get(function).map_or(&[][..], |costs| &costs.calls);
        for (address, callee) in calls {
            if follow(&profile.frames(function, *address)) {
                open.push(callee);
            }
        }
    }
    reached
}

fn is_ask(frame: &str) -> bool {
    without_generics(frame).ends_with("RpcEndpointRef>::ask")
}

/// Returns whether `frame` is the endpoint of the benches.
fn is_handler(frame: &str) -> bool {
    let frame = without_generics(frame);
    frame.starts_with("<benches::") && frame.contains("Endpoint>::receive")
}

/// Returns the type of rpc-core that has the method `frame`, if there is one.
fn type_of(frame: &str) -> Option<String> {
    let name = without_generics(frame);
    let mut name = name.as_str();
    if !name.starts_with('<') {
        return None;
    }
    // A closure's method names the method that has the closure: `<<T>::f::{closure#0} as Trait>`.
    while let Some(inner) = name.strip_prefix('<') {
        name = inner;
    }
    let end = name.find(['>', ' ']).unwrap_or(name.len());
    let name = match name.strip_prefix('&') {
        Some(reference) => {
            let reference = reference.trim_start_matches("mut ");
            &reference[..reference.find(['>', ' ']).unwrap_or(reference.len())]
        }
        None => &name[..end],
    };
    // Methods of foreign types and closures of free functions have no type of rpc-core.
    let path = name.strip_prefix(CRATE)?;
    (!path.contains('{')).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_in_methods_closures_and_trait_implementations() {
        for (frame, expected) in [
            ("<rpc_core::ask::Ask<b::Pong> as core::future::Future>::poll", Some("ask::Ask")),
            ("<rpc_core::inbox::Inbox<b::M>>::post", Some("inbox::Inbox")),
            ("<<rpc_core::a::B>::f::{closure#0} as core::ops::FnOnce<()>>::call_once", Some("a::B")),
            ("<&mut rpc_core::a::B as core::fmt::Debug>::fmt", Some("a::B")),
            ("rpc_core::wire::encode::<b::M>", None),
            ("<benches::Bench as rpc_core::endpoint::RpcEndpoint>::receive", None),
            ("core::ptr::drop_in_place::<rpc_core::a::B>", None),
        ] {
            assert_eq!(type_of(frame).as_deref(), expected, "{frame}");
        }
    }
}

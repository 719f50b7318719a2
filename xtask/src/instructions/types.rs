//! The types of rpc-core whose methods a remote ask executes.
//!
//! A type is listed if its methods, inlined or not, execute at least `NEGLIGIBLE` instructions per
//! operation. In the client it is on the path of the request if `RpcEndpointRef::ask` reaches the
//! method. In the server it is on that path if the method is reached without the endpoint's
//! `receive`, because the calls of `receive` belong to the reply.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::End;
use super::callgrind::CompiledFunction;
use super::profile::Profile;
use super::symbols::without_generics;

/// Types with fewer instructions per operation are ignored.
const NEGLIGIBLE: f64 = 0.1;
/// Call sites with fewer calls per operation are ignored.
const RARE: f64 = 0.01;
const CRATE: &str = "rpc_core::";

#[derive(Default)]
struct TypeRow {
    /// Instructions per operation in the client and in the server.
    client: f64,
    server: f64,
    /// The processes in which the type is on the path of the request.
    ends: Vec<&'static str>,
}

/// Prints the types of all `profiles` of a remote ask.
pub(super) fn print(profiles: &[Profile]) {
    let mut rows = BTreeMap::<String, TypeRow>::new();
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
            let end = if profile.end == End::Server { "server" } else { "client" };
            rows.entry(name).or_default().ends.push(end);
        }
    }
    println!("\ntypes of rpc-core in a remote ask, with the instructions per operation in each");
    println!("{:>8} {:>8}  on the path of the request", "client", "server");
    for (name, TypeRow { client, server, ends }) in &rows {
        println!("{client:8.1} {server:8.1}  {:14} {name}", ends.join(", "));
    }
    for (end, on_path, executed) in each {
        println!("{end:?}: {on_path} types on the path of the request, {executed} in all");
    }
    let on_path = rows.values().filter(|row| !row.ends.is_empty()).count();
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
    for ((function, address), cost) in &profile.costs.instructions {
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
    inside.retain(|_, cost| *cost >= NEGLIGIBLE);
    let own = |name: &String| innermost.get(name).copied().unwrap_or_default();
    inside.into_keys().map(|name| (name.clone(), own(&name))).collect()
}

/// Returns the types that `RpcEndpointRef::ask` reaches.
fn client_path(profile: &Profile) -> HashSet<String> {
    let ask = |frames: &[String]| frames.iter().position(|frame| is_ask(frame));
    let calls = repeated_calls(profile);
    let below_ask = calls.iter().flat_map(|(caller, calls)| calls.iter().map(move |c| (caller, c)));
    let starts = below_ask
        .filter(|(caller, (address, _))| ask(&profile.frames(caller, *address)).is_some())
        .map(|(_, (_, callee))| *callee)
        .collect();
    let reached = reachable(profile, &calls, starts, |_| true);
    let part = |function: &CompiledFunction, frames: &[String]| match ask(frames) {
        _ if reached.contains(function) => 0..frames.len(),
        Some(ask) => 0..ask + 1,
        None => 0..0,
    };
    executed_types(profile, part).into_keys().collect()
}

/// Returns the types that the server reaches without passing through the endpoint.
fn server_path(profile: &Profile) -> HashSet<String> {
    let calls = repeated_calls(profile);
    let called: HashSet<_> = calls.values().flatten().map(|(_, callee)| *callee).collect();
    // The loop of a worker thread is called once per run, so no repeated call reaches it.
    let functions = profile.costs.instructions.keys().map(|(function, _)| function);
    let starts = functions.filter(|function| !called.contains(function)).collect();
    let is_outside = |frames: &[String]| !frames.iter().any(|frame| is_handler(frame));
    let reached = reachable(profile, &calls, starts, is_outside);
    let part = |function: &CompiledFunction, frames: &[String]| {
        let handler = frames.iter().rposition(|frame| is_handler(frame));
        if reached.contains(function) { handler.map_or(0, |at| at + 1)..frames.len() } else { 0..0 }
    };
    executed_types(profile, part).into_keys().collect()
}

/// The call sites and callees of each function.
type Calls<'a> = HashMap<&'a CompiledFunction, Vec<(u64, &'a CompiledFunction)>>;

/// Returns the calls whose number grows with the operations.
fn repeated_calls(profile: &Profile) -> Calls<'_> {
    let mut calls = Calls::new();
    for ((caller, address, callee), count) in &profile.costs.calls {
        if *count >= RARE {
            calls.entry(caller).or_default().push((*address, callee));
        }
    }
    calls
}

/// Returns the functions that are called from `starts`, through call sites that `follow` accepts.
fn reachable<'a>(
    profile: &Profile,
    calls: &Calls<'a>,
    starts: Vec<&'a CompiledFunction>,
    follow: impl Fn(&[String]) -> bool,
) -> HashSet<&'a CompiledFunction> {
    let mut reached = HashSet::new();
    let mut pending = starts;
    while let Some(function) = pending.pop() {
        if !reached.insert(function) {
            continue;
        }
        for (address, callee) in calls.get(function).into_iter().flatten() {
            if follow(&profile.frames(function, *address)) {
                pending.push(callee);
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
            ("<<rpc_core::a::B>::f::{closure#0} as b::FnOnce<()>>::call", Some("a::B")),
            ("<&mut rpc_core::a::B as core::fmt::Debug>::fmt", Some("a::B")),
            ("rpc_core::wire::encode::<b::M>", None),
            ("<benches::Bench as rpc_core::endpoint::RpcEndpoint>::receive", None),
            ("core::ptr::drop_in_place::<rpc_core::a::B>", None),
        ] {
            assert_eq!(type_of(frame).as_deref(), expected, "{frame}");
        }
    }
}

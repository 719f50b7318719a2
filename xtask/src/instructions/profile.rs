//! Where the instructions of an operation go, with inlined functions counted by themselves.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::callgrind::{CallGraph, Callgrind, CompiledFunction, call_graph};
use super::symbols::{self, Frames};
use super::{End, Row};

/// The functions that are printed.
const SHOWN: usize = 40;

/// The cost of an operation in one process.
pub(super) struct Profile {
    pub(super) end: End,
    /// The name of the row and of its end.
    name: String,
    /// The output of callgrind, which is kept.
    path: PathBuf,
    /// Instructions per operation at each address of each compiled function.
    pub(super) costs: HashMap<(CompiledFunction, u64), f64>,
    /// The calls of the longer run.
    pub(super) graph: CallGraph,
    /// The inlined functions at the addresses of the measured program.
    frames: Frames,
    /// The path of the measured program, by which callgrind names it.
    program: String,
}

/// Takes the profile of each process of `row`, and keeps callgrind's output in `directory`.
pub(super) fn take(callgrind: &Callgrind<'_>, row: &Row, directory: &Path) -> Result<Vec<Profile>> {
    let directory = directory.join(row.name.replace([' ', ','], "-"));
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let (few, many) = row.operations;
    eprintln!("profiling {}", row.name);
    let shorter = callgrind.run(row, few, &directory)?;
    let longer = callgrind.run(row, many, &directory)?;
    let program = callgrind.program.canonicalize()?;
    let profiles = shorter.into_iter().zip(longer).map(|((end, shorter), (_, longer))| {
        let graph = call_graph(&longer)?;
        let mut costs = by_address(&graph);
        for (place, cost) in by_address(&call_graph(&shorter)?) {
            *costs.entry(place).or_default() -= cost;
        }
        costs.values_mut().for_each(|cost| *cost /= (many - few) as f64);
        let name = program.to_string_lossy().into_owned();
        let call_sites = graph
            .iter()
            .flat_map(|(function, costs)| costs.calls.iter().map(move |(address, _)| (function, *address)));
        let places = costs.keys().map(|(function, address)| (function, *address)).chain(call_sites);
        let addresses: std::collections::BTreeSet<_> =
            places.filter(|(function, _)| function.object == name).map(|(_, address)| address).collect();
        let frames = symbols::frames(&program, addresses.into_iter())?;
        Ok(Profile { end, name: end.of(row.name), path: longer, costs, graph, frames, program: name })
    });
    profiles.collect()
}

fn by_address(graph: &CallGraph) -> HashMap<(CompiledFunction, u64), f64> {
    let each = graph.iter().flat_map(|(function, costs)| {
        costs.costs.iter().map(move |(address, cost)| ((function.clone(), *address), *cost))
    });
    each.collect()
}

impl Profile {
    /// Returns the functions at an address, the innermost inlined one first.
    pub(super) fn frames(&self, function: &CompiledFunction, address: u64) -> Vec<String> {
        let known = (function.object == self.program).then(|| self.frames.get(&address)).flatten();
        let known = known.filter(|frames| frames.iter().any(|frame| frame != "??"));
        known.cloned().unwrap_or_else(|| {
            let library = function.object.rsplit('/').next().unwrap_or_default();
            vec![format!("{} [{library}]", function.name)]
        })
    }

    /// Prints the functions of highest cost.
    pub(super) fn print(&self) {
        let mut functions = BTreeMap::<String, f64>::new();
        for ((function, address), cost) in &self.costs {
            let frames = self.frames(function, *address);
            let innermost = frames.first().map_or("??", String::as_str);
            *functions.entry(symbols::without_generics(innermost)).or_default() += cost;
        }
        let total: f64 = functions.values().sum();
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by(|one, other| other.1.total_cmp(&one.1));
        println!("\n{}: {total:.0} instructions per operation", self.name);
        println!("self cost, share, function (without its callees, inlined functions apart)");
        for (function, cost) in functions.into_iter().take(SHOWN) {
            println!("{cost:8.1} {:5.1} %  {function}", cost / total * 100.0);
        }
        println!("callgrind's output is in {}", self.path.display());
    }
}

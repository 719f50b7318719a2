//! Profiles of the instructions per operation, with inlined functions counted separately.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::callgrind::{Callgrind, CompiledFunction, Costs};
use super::symbols::{self, Frames};
use super::{End, InstructionRow};

/// The number of functions that are printed.
const SHOWN: usize = 40;

/// The cost per operation in one process.
pub(super) struct Profile {
    pub(super) end: End,
    /// The name of the row and the process.
    name: String,
    /// The output file of callgrind.
    path: PathBuf,
    /// The costs per operation.
    pub(super) costs: Costs,
    /// The inlined functions at the addresses of the measured program.
    frames: Frames,
    /// The path of the measured program, by which callgrind names it.
    program_name: String,
}

/// Profiles each process of `row`. The output of callgrind stays in `directory`.
pub(super) fn take(
    callgrind: &Callgrind<'_>,
    row: &InstructionRow,
    directory: &Path,
) -> Result<Vec<Profile>> {
    let directory = directory.join(row.name.replace([' ', ','], "-"));
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let (few, many) = row.operations;
    eprintln!("profiling {}", row.name);
    let shorter = callgrind.run(row, few, &directory)?;
    let longer = callgrind.run(row, many, &directory)?;
    let program = callgrind.program.canonicalize()?;
    let profiles = shorter.into_iter().zip(longer).map(|((end, shorter), (_, longer))| {
        let costs = Costs::read(&longer)?.per_operation(&Costs::read(&shorter)?, many - few);
        let program_name = program.to_string_lossy().into_owned();
        let call_sites = costs.calls.keys().map(|(caller, address, _)| (caller, *address));
        let executed = costs.instructions.keys().map(|(function, address)| (function, *address));
        let places = executed.chain(call_sites);
        let in_program = places.filter(|(function, _)| function.object == program_name);
        let addresses: BTreeSet<_> = in_program.map(|(_, address)| address).collect();
        let frames = symbols::frames(&program, addresses.into_iter())?;
        let (name, path) = (end.of(row.name), longer);
        Ok(Profile { end, name, path, costs, frames, program_name })
    });
    profiles.collect()
}

impl Profile {
    /// Returns the functions at an address, the innermost inlined one first.
    pub(super) fn frames(&self, function: &CompiledFunction, address: u64) -> Vec<String> {
        let is_ours = function.object == self.program_name;
        let known = is_ours.then(|| self.frames.get(&address)).flatten();
        let known = known.filter(|frames| frames.iter().any(|frame| frame != "??"));
        known.cloned().unwrap_or_else(|| {
            let library = function.object.rsplit('/').next().unwrap_or_default();
            vec![format!("{} [{library}]", function.name)]
        })
    }

    /// Prints the functions of highest cost.
    pub(super) fn print(&self) {
        let mut functions = BTreeMap::<String, f64>::new();
        for ((function, address), cost) in &self.costs.instructions {
            let frames = self.frames(function, *address);
            let innermost = frames.first().map_or("??", String::as_str);
            *functions.entry(symbols::without_generics(innermost)).or_default() += cost;
        }
        let total: f64 = functions.values().sum();
        let mut functions: Vec<_> = functions.into_iter().collect();
        functions.sort_by(|one, other| other.1.total_cmp(&one.1));
        println!("\n{}: {total:.0} instructions per operation", self.name);
        println!("self cost, share, function (without callees; inlined functions are separate)");
        for (function, cost) in functions.into_iter().take(SHOWN) {
            println!("{cost:8.1} {:5.1} %  {function}", cost / total * 100.0);
        }
        println!("callgrind's output is in {}", self.path.display());
    }
}

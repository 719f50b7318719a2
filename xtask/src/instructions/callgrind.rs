//! Runs the processes of a row under callgrind and reads its output files.

use std::collections::HashMap;
use std::fs;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench_protocol::{Job, READY, Until};

use super::{End, InstructionRow, Processes};
use crate::process::Process;

const RUN_TIMEOUT: Duration = Duration::from_secs(600);

/// The detail of callgrind's output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// The total instructions of the process.
    Totals,
    /// The cost of each instruction address, which separates inlined functions.
    Addresses,
}

/// The output file of each process of a row.
pub(super) type Outputs = Vec<(End, PathBuf)>;

/// A program that is run under callgrind.
pub(super) struct Callgrind<'a> {
    pub(super) program: &'a Path,
    /// The file that a server reads chunks from.
    pub(super) file: &'a Path,
    pub(super) detail: Detail,
}

impl Callgrind<'_> {
    /// Runs `operations` of a row and returns the output file of each process.
    pub(super) fn run(
        &self,
        row: &InstructionRow,
        operations: u64,
        directory: &Path,
    ) -> Result<Outputs> {
        let deadline = Instant::now() + RUN_TIMEOUT;
        let mut server = None;
        let mut client_words = vec!["drive".to_owned(), row.contender.to_owned()];
        let mut end = End::Whole;
        if let Processes::ClientAndServer = row.processes {
            end = End::Client;
            let output = directory.join(format!("server-{operations}.callgrind"));
            let words = ["serve", row.contender, "--file", &self.file.to_string_lossy()];
            let process = Process::start("server", &mut self.command(&output, &words))?;
            client_words.push(ready(&process, deadline)?);
            server = Some((process, output));
        }
        let output = directory.join(format!("client-{operations}.callgrind"));
        let mut client = Process::start("client", &mut self.command(&output, &client_words))
            .context("is valgrind installed? `apt-get install valgrind`")?;
        ready(&client, deadline)?;
        let job = Job { until: Until::Operations(operations), ..row.job };
        client.write_line(&serde_json::to_string(&job)?)?;
        let sample = client.read_line(deadline)?;
        ensure!(sample.is_some(), "{} failed:\n{}", row.name, client.stderr().join("\n"));
        // Callgrind writes its output when the process exits, at the end of stdin.
        let mut outputs = vec![(end, finish(client, output, deadline)?)];
        if let Some((process, output)) = server {
            outputs.push((End::Server, finish(process, output, deadline)?));
        }
        Ok(outputs)
    }

    fn command(&self, output: &Path, words: &[impl AsRef<std::ffi::OsStr>]) -> Command {
        // On one core the processes run in nearly the same order each time, with equal batches.
        let mut command = Command::new("taskset");
        command.args(["-c", "0", "valgrind", "--tool=callgrind"]);
        command.arg(format!("--callgrind-out-file={}", output.display()));
        if self.detail == Detail::Addresses {
            command.args(["--dump-instr=yes", "--compress-strings=no", "--compress-pos=no"]);
        }
        command.arg(self.program).args(words).env("TOKIO_WORKER_THREADS", "1");
        command
    }
}

/// Waits until the process is ready and returns the argument of its ready line.
fn ready(process: &Process, deadline: Instant) -> Result<String> {
    while let Some(line) = process.read_line(deadline)? {
        if let Some(rest) = line.strip_prefix(READY) {
            return Ok(rest.trim().to_owned());
        }
    }
    anyhow::bail!("the process exited before it was ready: {}", process.stderr().join("\n"))
}

fn finish(mut process: Process, output: PathBuf, deadline: Instant) -> Result<PathBuf> {
    let status = process.exit(deadline)?;
    ensure!(status.success(), "the process failed ({status}):\n{}", process.stderr().join("\n"));
    Ok(output)
}

/// Reads the total instructions from an output file.
pub(super) fn total(path: &Path) -> Result<f64> {
    let text = fs::read_to_string(path).context("cannot read the output of callgrind")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.context("the output of callgrind has no totals")?.trim().parse()?)
}

/// A function that has its own symbol in the compiled program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CompiledFunction {
    pub(super) object: String,
    pub(super) name: String,
}

/// Costs and calls by address, of a whole run or per operation.
#[derive(Debug, Default)]
pub(super) struct Costs {
    /// Instructions executed at each address, without those of callees.
    pub(super) instructions: HashMap<(CompiledFunction, u64), f64>,
    /// The number of calls of each callee, by call site.
    pub(super) calls: HashMap<(CompiledFunction, u64, CompiledFunction), f64>,
}

impl Costs {
    /// Reads an output file that was written with [`Detail::Addresses`].
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context("cannot read the output of callgrind")?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let mut all = Self::default();
        let mut function = CompiledFunction { object: String::new(), name: String::new() };
        let (mut callee_object, mut callee) = (None, String::new());
        // Set if the next line is the cost of calls and not of the function itself.
        let mut calls: Option<f64> = None;
        for line in text.lines() {
            if let Some((key, value)) = line.split_once('=') {
                match key {
                    "ob" => value.clone_into(&mut function.object),
                    "fn" => value.clone_into(&mut function.name),
                    "cob" => callee_object = Some(value.to_owned()),
                    "cfn" => value.clone_into(&mut callee),
                    "calls" => calls = Some(value.split(' ').next().unwrap_or_default().parse()?),
                    _ => {}
                }
            } else if let Some(rest) = line.strip_prefix("0x") {
                let mut fields = rest.split(' ');
                let address = u64::from_str_radix(fields.next().unwrap_or_default(), 16)?;
                let cost: f64 = fields.nth(1).context("a line without a cost")?.parse()?;
                if let Some(calls) = calls.take() {
                    // Without `cob` the callee is in the caller's object.
                    let object = callee_object.take().unwrap_or_else(|| function.object.clone());
                    let callee = CompiledFunction { object, name: callee.clone() };
                    let site = (function.clone(), address, callee);
                    *all.calls.entry(site).or_default() += calls;
                } else {
                    *all.instructions.entry((function.clone(), address)).or_default() += cost;
                }
            }
        }
        Ok(all)
    }

    /// Returns the costs per operation, for a run with `operations` more than `shorter`.
    pub(super) fn per_operation(self, shorter: &Self, operations: u64) -> Self {
        Self {
            instructions: subtract(self.instructions, &shorter.instructions, operations as f64),
            calls: subtract(self.calls, &shorter.calls, operations as f64),
        }
    }
}

fn subtract<K: Eq + Hash>(
    longer: HashMap<K, f64>,
    shorter: &HashMap<K, f64>,
    operations: f64,
) -> HashMap<K, f64> {
    let each = longer.into_iter().map(|(key, count)| {
        let before = shorter.get(&key).copied().unwrap_or_default();
        (key, (count - before) / operations)
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_of_callees_are_not_costs_of_the_caller() {
        let text = "positions: instr line\nevents: Ir\n\n\
                    ob=/a\nfl=a.rs\nfn=caller\n0x10 1 5\n0x12 1 2\n\
                    cob=/b\ncfi=b.rs\ncfn=callee\ncalls=3 0x40 7\n0x14 2 90\n0x16 2 1\n\n\
                    ob=/b\nfl=b.rs\nfn=callee\n0x40 7 90\n\ntotals: 98\n";
        let costs = Costs::parse(text).unwrap();
        let of = |object: &str, name: &str| {
            let (object, name) = (object.to_owned(), name.to_owned());
            CompiledFunction { object, name }
        };
        let (caller, callee) = (of("/a", "caller"), of("/b", "callee"));
        let own = |function: &CompiledFunction| -> f64 {
            let own = costs.instructions.iter().filter(|((of, _), _)| of == function);
            own.map(|(_, cost)| cost).sum()
        };
        assert_eq!((own(&caller), own(&callee)), (8.0, 90.0));
        assert_eq!(costs.calls, [((caller, 0x14, callee), 3.0)].into());
    }
}

//! `cargo xtask instructions`: a cost that does not drift with the machine's load.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench_protocol::{Case, Job, Until};
use clap::Args;

use crate::build::{self, ROOT};
use crate::process::Process;

/// What the options do not say.
pub(crate) const HELP: &str = "\
Needs valgrind. Runs the measured program of the benches under callgrind with one worker thread, twice with different numbers of operations: the
difference is what an operation costs, without start and end. Fails when one costs over 5 % more than xtask/instructions.json says.";

/// What `cargo xtask instructions` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// Write what is counted into xtask/instructions.json
    #[arg(long)]
    bless: bool,
}

/// Compilers, memory allocators and counts of batches differ by less.
const TOLERANCE: f64 = 0.05;
const LIMIT: Duration = Duration::from_secs(600);

/// Name, contender, job.
fn cases() -> [(&'static str, &'static str, Job); 5] {
    let (echo, send, ask) = (Job::new(Case::Echo), Job::new(Case::Send), Job::new(Case::Ask));
    [
        ("encode and decode a frame", "codec", echo),
        ("local send", "ours-local", send),
        ("local ask, one at a time", "ours-local", ask),
        ("local ask, 128 in flight", "ours-local", Job { window: 128, ..ask }),
        ("ask over loopback, 128 in flight, both ends", "ours-loopback", Job { window: 128, ..ask }),
    ]
}

/// Counts; false if something costs more than it did.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let program = build::program(".", "contender", &["--package", "benches", "--bin", "contender"])?;
    let mut counted = BTreeMap::new();
    for (name, contender, job) in cases() {
        let (few, many) = (20_000, 60_000);
        let more = count(&program, contender, job, many)? - count(&program, contender, job, few)?;
        counted.insert(name.to_owned(), (more / (many - few) as f64).round());
    }
    let path = Path::new(ROOT).join("xtask/instructions.json");
    if options.bless {
        fs::write(&path, serde_json::to_string_pretty(&counted)? + "\n")?;
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let before: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    let mut good = true;
    println!("instructions per operation: now, committed");
    for (name, now) in &counted {
        let before = before.get(name).with_context(|| format!("{name} is not in {}", path.display()))?;
        let verdict = match now / before - 1.0 {
            more if more > TOLERANCE => "COSTS MORE",
            less if less < -TOLERANCE => "costs less: commit it with --bless",
            _ => "",
        };
        good &= now / before - 1.0 <= TOLERANCE;
        println!("{name:45} {now:8} {before:8} {verdict}");
    }
    Ok(good)
}

/// The instructions of a whole run of so many operations.
fn count(program: &Path, contender: &str, job: Job, operations: u64) -> Result<f64> {
    let out = tempfile::tempdir()?;
    let file = out.path().join("callgrind");
    let mut valgrind = Command::new("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", file.display()));
    valgrind.arg(program).args(["drive", contender]).env("TOKIO_WORKER_THREADS", "1");
    let mut process = Process::start("valgrind", &mut valgrind)
        .context("is valgrind installed? `apt-get install valgrind`")?;
    let job = Job { until: Until::Operations(operations), ..job };
    process.tell(&serde_json::to_string(&job)?)?;
    let status = process.exit(Instant::now() + LIMIT)?;
    ensure!(status.success(), "{contender} failed ({status}):\n{}", process.stderr().join("\n"));
    let text = fs::read_to_string(&file).context("callgrind wrote nothing")?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(totals.context("callgrind counted nothing")?.trim().parse()?)
}

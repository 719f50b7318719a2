//! `cargo xtask instructions`: counts instructions, which do not depend on the machine's load.

mod callgrind;
mod profile;
mod symbols;
mod types;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bench_protocol::{Case, Job, write_file};
use clap::Args;
use tempfile::NamedTempFile;

use crate::build::{self, ROOT};
use callgrind::{Callgrind, Detail};

/// The text of `cargo xtask instructions --help` below the options.
pub(crate) const HELP: &str = "\
Requires valgrind; --profile and --types also require addr2line.
Each row runs twice under callgrind, with one worker thread and different numbers of operations.
The difference is the cost per operation, without start and shutdown. Client and server of a remote
row are two processes on one core and are counted separately. callgrind counts each byte that
`rep movsb` copies as one instruction.
The exit status is 1 if a row costs over 5 % more than in xtask/instructions.json (over 20 % for
chunks and remote one-way messages, which vary more).";

/// The options of `cargo xtask instructions`.
#[derive(Args)]
pub(crate) struct InstructionOptions {
    /// Write the counts into xtask/instructions.json
    #[arg(long)]
    bless: bool,
    /// Count only the rows whose names contain this text
    #[arg(long, value_name = "TEXT", conflicts_with = "bless")]
    row: Option<String>,
    /// Print the 40 functions of highest cost of the rows whose names contain this text
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["bless", "row"])]
    profile: Option<String>,
    /// List the types of rpc-core whose methods a remote ask executes
    #[arg(long, conflicts_with_all = ["bless", "row"])]
    types: bool,
    /// Directory for the callgrind output of --profile and --types
    #[arg(long, value_name = "DIRECTORY", default_value = "target/instructions")]
    output: PathBuf,
}

/// The largest allowed growth. Compilers, allocators and batch sizes cause smaller differences.
const TOLERANCE: f64 = 0.05;
/// The largest allowed growth of rows that depend on the scheduling of the two processes.
///
/// Chunks vary by up to 17 %, the client of remote one-way messages by up to 8 %.
const VARIABLE_TOLERANCE: f64 = 0.2;
const REMOTE_ASK: &str = "remote ask, 128 in flight";
const FILE_SIZE: usize = 64 << 20;

/// The processes of a row.
#[derive(Clone, Copy)]
enum Processes {
    /// One process, which does everything.
    One,
    /// A server and a client, which are counted separately.
    ClientAndServer,
}

/// One of the processes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    Whole,
    Client,
    Server,
}

impl End {
    /// Returns the name of this end of `row`.
    fn of(self, row: &str) -> String {
        match self {
            Self::Whole => row.to_owned(),
            Self::Client => format!("{row}, client"),
            Self::Server => format!("{row}, server"),
        }
    }
}

/// A job whose instructions are counted.
#[derive(Clone, Copy)]
struct InstructionRow {
    name: &'static str,
    /// The contender of the benches that does the job.
    contender: &'static str,
    processes: Processes,
    job: Job,
    /// The operations of the shorter and of the longer run.
    operations: (u64, u64),
}

fn rows() -> [InstructionRow; 8] {
    let (echo, send, ask) = (Job::new(Case::Echo), Job::new(Case::Send), Job::new(Case::Ask));
    let many_asks = Job { window: 128, ..ask };
    let chunks = |bytes| Job { bytes, window: 4, ..Job::new(Case::FetchFile) };
    let one = |name, contender, job| InstructionRow {
        name,
        contender,
        processes: Processes::One,
        job,
        operations: (20_000, 60_000),
    };
    let remote = |name, contender, job, operations| InstructionRow {
        name,
        contender,
        processes: Processes::ClientAndServer,
        job,
        operations,
    };
    [
        one("encode and decode a frame", "codec", echo),
        one("local send", "ours-local", send),
        one("local ask, one at a time", "ours-local", ask),
        one("local ask, 128 in flight", "ours-local", many_asks),
        remote(REMOTE_ASK, "ours-rpc", many_asks, (20_000, 60_000)),
        remote("remote one-way", "ours-rpc", send, (20_000, 60_000)),
        remote("chunk of 4 MiB from a file", "ours", chunks(4 << 20), (100, 500)),
        remote("chunk of 20 KiB from a file", "ours", chunks(20 << 10), (2_000, 6_000)),
    ]
}

/// Returns the rows that have `text` in the name of one of their ends.
fn rows_with(text: &str) -> Result<Vec<InstructionRow>> {
    let has_text = |row: &InstructionRow| {
        [End::Whole, End::Client, End::Server].iter().any(|end| end.of(row.name).contains(text))
    };
    let found: Vec<_> = rows().into_iter().filter(has_text).collect();
    ensure!(!found.is_empty(), "no row has {text:?} in its name");
    Ok(found)
}

/// Counts the instructions. Returns false if a row costs more than the tolerance allows.
pub(crate) fn run(options: &InstructionOptions) -> Result<bool> {
    if options.types || options.profile.is_some() {
        return explain(options);
    }
    let program = build::bench_program("contender")?;
    let file = served_file()?;
    let callgrind = Callgrind { program: &program, file: file.path(), detail: Detail::Totals };
    let rows = options.row.as_deref().map_or_else(|| Ok(rows().to_vec()), rows_with)?;
    let mut counted = BTreeMap::new();
    for row in rows {
        eprintln!("counting {}", row.name);
        counted.extend(per_operation(&callgrind, row)?);
    }
    let path = Path::new(ROOT).join("xtask/instructions.json");
    if options.bless {
        fs::write(&path, serde_json::to_string_pretty(&counted)? + "\n")?;
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let committed: BTreeMap<String, f64> = serde_json::from_str(&text)?;
    compare(&counted, &committed)
}

/// Returns the instructions of an operation, for each process of `row`.
fn per_operation(callgrind: &Callgrind<'_>, row: InstructionRow) -> Result<Vec<(String, f64)>> {
    let (few, many) = row.operations;
    let [shorter, longer] = [few, many].map(|operations| -> Result<Vec<(End, f64)>> {
        let directory = tempfile::tempdir()?;
        let outputs = callgrind.run(&row, operations, directory.path())?;
        outputs.iter().map(|(end, path)| Ok((*end, callgrind::total(path)?))).collect()
    });
    let each = shorter?.into_iter().zip(longer?).map(|((end, shorter), (_, longer))| {
        (end.of(row.name), ((longer - shorter) / (many - few) as f64).round())
    });
    Ok(each.collect())
}

/// Prints the new and the committed counts. Returns false if a row costs more.
fn compare(counted: &BTreeMap<String, f64>, committed: &BTreeMap<String, f64>) -> Result<bool> {
    let mut all_within = true;
    println!("instructions per operation: now, committed");
    for (name, now) in counted {
        let before = committed.get(name).with_context(|| format!("{name} is not committed"))?;
        let is_variable = ["chunk", "remote one-way"].iter().any(|row| name.starts_with(row));
        let tolerance = if is_variable { VARIABLE_TOLERANCE } else { TOLERANCE };
        let verdict = match now / before - 1.0 {
            change if change > tolerance => "COSTS MORE",
            change if change < -tolerance => "costs less: commit it with --bless",
            _ => "",
        };
        all_within &= now / before - 1.0 <= tolerance;
        println!("{name:45} {now:8} {before:8} {verdict}");
    }
    Ok(all_within)
}

/// Prints profiles or the types of a remote ask. Returns true.
fn explain(options: &InstructionOptions) -> Result<bool> {
    let program = build::program_with(
        ".",
        "contender",
        &["--profile", "profiling", "--package", "benches", "--bin", "contender"],
        // Legacy mangling omits the generic arguments of an inherent method's type.
        &[("RUSTFLAGS", "-Csymbol-mangling-version=v0")],
    )?;
    let file = served_file()?;
    let callgrind = Callgrind { program: &program, file: file.path(), detail: Detail::Addresses };
    if let Some(text) = &options.profile {
        for row in rows_with(text)? {
            for profile in profile::take(&callgrind, &row, &options.output)? {
                profile.print();
            }
        }
    }
    if options.types {
        let row = rows().into_iter().find(|row| row.name == REMOTE_ASK);
        let row = row.context("there is no row of remote asks")?;
        types::print(&profile::take(&callgrind, &row, &options.output)?);
    }
    Ok(true)
}

/// Creates the file that chunks are read from. It is in the page cache.
fn served_file() -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    write_file(file.path(), FILE_SIZE)?;
    Ok(file)
}

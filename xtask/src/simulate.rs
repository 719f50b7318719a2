//! `cargo xtask simulate`: runs seeded plays on the simulated network, and finds planted bugs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

/// The text of `cargo xtask simulate --help` below the options.
pub(crate) const HELP: &str = "\
`cargo run --release -p simulate -- --help` lists the options of the program.
A seed determines the steps, the faults and the times of a play, so it can be replayed. A failing
seed is printed with the timeline of the fewest steps that still fail. With 2000 seeds or more, the
run also fails if a kind of fault never occurred.
--planted applies each patch of fuzz/planted to a copy of the tree, and expects that the play and
the seed in its first line fail.";

/// The directory of the patches.
const PLANTED: &str = "fuzz/planted";

/// The options of `cargo xtask simulate`.
#[derive(Args)]
pub(crate) struct SimulateOptions {
    /// Check that the planted bugs are found
    #[arg(long)]
    planted: bool,
    /// Options of the program `simulate`, such as `--seeds 1000` and `--play bulk`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, conflicts_with = "planted")]
    arguments: Vec<String>,
}

/// Runs the plays. Returns whether all promises held, or all planted bugs were found.
pub(crate) fn run(options: &SimulateOptions) -> Result<bool> {
    if options.planted {
        return find_planted_bugs();
    }
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--release", "--package", "simulate", "--"]);
    command.args(&options.arguments);
    Ok(command.status().context("cargo cannot be run")?.success())
}

/// A bug that a patch adds to the code, and the seed of a play that finds it.
struct PlantedBug {
    patch: PathBuf,
    play: String,
    seed: String,
    description: String,
}

impl PlantedBug {
    /// Reads the first line of a patch: `<play> <seed>: <description>`.
    fn read(patch: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&patch)?;
        let line = text.lines().next().unwrap_or_default();
        let parsed = line.split_once(": ").and_then(|(key, description)| {
            let (play, seed) = key.split_once(' ')?;
            Some((play.to_owned(), seed.to_owned(), description.to_owned()))
        });
        let Some((play, seed, description)) = parsed else {
            bail!("{}: the first line is not `play seed: description`", patch.display());
        };
        Ok(Self { patch, play, seed, description })
    }
}

fn find_planted_bugs() -> Result<bool> {
    let mut patches: Vec<PathBuf> =
        fs::read_dir(PLANTED)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    ensure!(!patches.is_empty(), "there are no patches in {PLANTED}");
    let tree = PathBuf::from("target/planted/tree");
    copy_tree(&tree)?;
    let mut is_ok = true;
    for patch in patches {
        let bug = PlantedBug::read(patch)?;
        ensure!(apply(&tree, &bug, false)?, "{} does not apply", bug.patch.display());
        let is_found = finds(&tree, &bug)?;
        ensure!(apply(&tree, &bug, true)?, "{} cannot be reverted", bug.patch.display());
        let verdict = if is_found { "found" } else { "NOT FOUND" };
        println!("{verdict}: {} ({} seed {})", bug.description, bug.play, bug.seed);
        is_ok &= is_found;
    }
    Ok(is_ok)
}

/// Copies the files of this repository, including changes that are not committed.
fn copy_tree(tree: &Path) -> Result<()> {
    let listed = Command::new("git").args(["ls-files", "-z"]).output().context("git ls-files")?;
    ensure!(listed.status.success(), "git ls-files failed");
    for file in String::from_utf8(listed.stdout)?.split('\0').filter(|file| !file.is_empty()) {
        let copy = tree.join(file);
        let Ok(content) = fs::read(file) else { continue };
        // An unchanged file keeps its time, so that cargo does not build it again.
        if fs::read(&copy).is_ok_and(|before| before == content) {
            continue;
        }
        fs::create_dir_all(copy.parent().unwrap_or(tree))?;
        fs::write(&copy, content).with_context(|| copy.display().to_string())?;
    }
    Ok(())
}

fn apply(tree: &Path, bug: &PlantedBug, reverse: bool) -> Result<bool> {
    let mut command = Command::new("patch");
    command.args(["--quiet", "--strip=1", "--force", "--directory"]).arg(tree);
    command.args(reverse.then_some("--reverse"));
    command.arg("--input").arg(fs::canonicalize(&bug.patch)?);
    Ok(command.status().context("patch cannot be run")?.success())
}

/// Builds the tree with the bug, and returns whether its seed fails.
fn finds(tree: &Path, bug: &PlantedBug) -> Result<bool> {
    let target = fs::canonicalize("target/planted")?.join("build");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "simulate"])
        .env("CARGO_TARGET_DIR", &target)
        // Builds of two patches differ in few modules.
        .env("CARGO_INCREMENTAL", "1")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .current_dir(tree)
        .status()?;
    ensure!(built.success(), "the tree with {} does not build", bug.patch.display());
    let output = Command::new(target.join("debug/simulate"))
        .args(["--play", &bug.play, "--from", &bug.seed, "--seeds", "1", "--no-shrink"])
        .output()?;
    Ok(output.status.code() == Some(1))
}

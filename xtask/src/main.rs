//! The project's own tasks, run as `cargo xtask <task>`.

mod build;
mod compare;
mod floors;
mod instructions;
mod interop;
mod process;
mod prose;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Prove the transport against real Spark, in both directions
    #[command(after_help = interop::HELP)]
    Interop(interop::Options),
    /// Measure ours beside the limits, other libraries and real Spark, and judge the goals
    #[command(after_help = compare::HELP)]
    Compare(compare::Options),
    /// Measure what idle connections, endpoints and outstanding asks cost, in memory and in speed
    Scale(compare::ScaleOptions),
    /// Count the instructions of messages and chunks, and compare them with committed counts
    #[command(after_help = instructions::HELP)]
    Instructions(instructions::InstructionOptions),
    /// Check the imports of both crates against the floors in ARCHITECTURE.md
    #[command(after_help = floors::HELP)]
    Floors,
    /// Count the mechanical signs of text and names that are hard to read
    #[command(after_help = prose::HELP)]
    Prose(prose::ProseOptions),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Interop(options) => interop::run(&options),
        Task::Compare(options) => compare::run(&options),
        Task::Scale(options) => compare::scale(&options),
        Task::Instructions(options) => instructions::run(&options),
        Task::Floors => floors::run(),
        Task::Prose(options) => prose::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! The project's own tasks, run as `cargo xtask <task>`.

mod interop;
mod process;

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
}

fn main() -> ExitCode {
    let done = match Arguments::parse().task {
        Task::Interop(options) => interop::run(&options),
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

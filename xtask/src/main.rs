//! The development tasks of this repository, run as `cargo xtask <task>`.

#![forbid(unsafe_code)]

mod build;
mod compare;
mod conformance;
mod floors;
mod generate;
mod instructions;
mod interop;
mod process;
mod prose;
mod simulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Runs the development tasks of this repository")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run network-common against real Spark, as client and as server
    #[command(after_help = interop::HELP)]
    Interop(interop::InteropOptions),
    /// Compare our performance with limit programs, other libraries and Spark
    #[command(after_help = compare::HELP)]
    Compare(compare::CompareOptions),
    /// Measure the cost of idle connections, idle endpoints and pending asks
    Scale(compare::ScaleOptions),
    /// Count the instructions per operation and compare them with the committed counts
    #[command(after_help = instructions::HELP)]
    Instructions(instructions::InstructionOptions),
    /// Check the imports of both crates against the floors in ARCHITECTURE.md
    #[command(after_help = floors::HELP)]
    Floors,
    /// Generate the committed code of the envelope's and the tests' schemas
    Generate(generate::GenerateOptions),
    /// Write the tests of each row into docs/conformance.md
    #[command(after_help = conformance::HELP)]
    Conformance(conformance::ConformanceOptions),
    /// Run seeded plays on the simulated network, or find the planted bugs
    #[command(after_help = simulate::HELP)]
    Simulate(simulate::SimulateOptions),
    /// Find text and names that are probably hard to read
    #[command(after_help = prose::HELP)]
    Prose(prose::ProseOptions),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Interop(options) => interop::run(&options),
        Task::Compare(options) => compare::run(&options),
        Task::Scale(options) => compare::scale(&options),
        Task::Instructions(options) => instructions::run(&options),
        Task::Floors => floors::run(),
        Task::Generate(options) => generate::run(&options),
        Task::Conformance(options) => conformance::run(&options),
        Task::Prose(options) => prose::run(&options),
        Task::Simulate(options) => simulate::run(&options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

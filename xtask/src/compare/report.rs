//! Prints the results and writes them as JSON.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use bench_protocol::Case;
use serde::Serialize;
use serde_json::json;

use super::contenders::{Side, contender};
use super::goals::{Bound, Metric, Results, Verdict};
use super::history;
use super::place::Places;
use super::plan::Measurement;
use crate::build::ROOT;
use crate::process;

/// The conditions on which the figures depend.
#[derive(Serialize)]
pub(crate) struct Conditions {
    smoke: bool,
    pub(crate) runs: usize,
    pub(crate) commit: String,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) kernel: String,
    pub(crate) date: String,
    bulk_congestion_control: String,
    pub(crate) load_average: String,
}

/// Collects the conditions of this run.
pub(crate) fn conditions(places: &Places, smoke: bool, runs: usize) -> Conditions {
    let output_of = |name: &str, words: &[&str]| {
        let lines = process::output(name, Command::new(name).args(words), Duration::from_secs(10));
        lines.unwrap_or_default().join(" ")
    };
    let head = output_of("git", &["-C", ROOT, "rev-parse", "--short=10", "HEAD"]);
    let tracked = ["-C", ROOT, "status", "--porcelain", "--untracked-files=no", "--", "."];
    // An earlier run may have been recorded and not committed.
    let is_changed = !output_of("git", &[&tracked[..], &history::EXCLUDED].concat()).is_empty();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Conditions {
        smoke,
        runs,
        commit: if is_changed { format!("{head}-dirty") } else { head },
        cpu: cpu.map_or_else(String::new, |(_, model)| model.to_owned()),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        kernel: output_of("uname", &["-sr"]),
        date: output_of("date", &["-u", "+%F"]),
        bulk_congestion_control: places.congestion_control(),
        load_average: fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned(),
    }
}

/// Prints a table for each measurement.
pub(crate) fn print(conditions: &Conditions, measurements: &[Measurement], results: &Results) {
    println!(
        "{}, {} cores, {}, {} runs, bulk under {}, load {}{}",
        conditions.date,
        conditions.cores,
        conditions.kernel,
        conditions.runs,
        conditions.bulk_congestion_control,
        conditions.load_average,
        if conditions.smoke { "\nQUICK RUN: the figures have no meaning" } else { "" }
    );
    for measurement in measurements {
        let mut title = Some(measurement.title);
        for name in measurement.contenders {
            let median = |metric| results.median(measurement.id, name, metric);
            let Some(rate) = median(Metric::Rate) else { continue };
            if let Some(title) = title.take() {
                println!("\n{title}");
            }
            let cell = |value: Option<f64>, unit: &str| {
                value.map_or(String::new(), |value| format!("{value:.2} {unit}"))
            };
            let rate = match bytes(measurement) {
                Some(bytes) => format!("{:.2} GB/s", rate * bytes / 1e9),
                None => format!("{:.1} k/s", rate / 1e3),
            };
            println!(
                "  {name:<14} {rate:>14} {:>16} {:>16} {:>18} {:>16} {:>14}",
                cell(median(Metric::P50), "us p50"),
                cell(median(Metric::P99), "us p99"),
                cell(median(Metric::Cpu), "us CPU/op"),
                cell(median(Metric::SystemCalls), "syscalls/op"),
                cell(median(Metric::Peak).map(|bytes| bytes / 1e6), "MB peak"),
            );
        }
    }
}

/// Prints the table of goals.
pub(crate) fn print_goals(verdicts: &[Verdict]) {
    println!(
        "\n| goal | measurement | metric | ours | other | ratio | goal | result |\n\
         |---|---|---|---|---|---|---|---|"
    );
    for verdict in verdicts {
        println!("{}", row(verdict));
    }
}

/// Returns the bytes per operation if the rate is reported in bytes.
pub(crate) fn bytes(measurement: &Measurement) -> Option<f64> {
    let job = &measurement.job;
    (!matches!(job.case, Case::Echo | Case::Ask | Case::Send)).then_some(job.bytes as f64)
}

fn row(verdict: &Verdict) -> String {
    let against = match verdict.against {
        None => String::new(),
        Some((name, measurement, value)) if measurement == verdict.measurement => {
            let side = if is_limit(name) { "limit " } else { "" };
            format!("{side}{name} {}", short(value))
        }
        Some((name, measurement, value)) => format!("{name}, {measurement}: {}", short(value)),
    };
    let required = match verdict.bound {
        Bound::AtLeast(bound) => format!("at least {bound}"),
        Bound::AtMost(bound) => format!("at most {bound}"),
        Bound::MoreThan(bound) => format!("more than {bound}"),
    };
    let metric = format!("{:?}", verdict.metric).to_lowercase();
    format!(
        "| {} | {} | {metric} | {} | {against} | {:.2} | {required} | {} |",
        verdict.goal,
        verdict.measurement,
        short(verdict.ours),
        verdict.ratio,
        if verdict.met { "met" } else { "MISSED" },
    )
}

fn is_limit(name: &str) -> bool {
    name != "scale" && contender(name).side == Side::Limit
}

/// Formats a value with about three digits.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

/// Writes the conditions, verdicts and samples as JSON.
pub(crate) fn write_json(
    path: &Path,
    conditions: &Conditions,
    results: &Results,
    verdicts: &[Verdict],
) -> Result<()> {
    let samples: Vec<_> = results
        .iter()
        .map(|(measurement, contender, runs)| {
            json!({ "measurement": measurement, "contender": contender, "runs": runs })
        })
        .collect();
    let all = json!({ "conditions": conditions, "goals": verdicts, "samples": samples });
    fs::write(path, serde_json::to_string_pretty(&all)?).with_context(|| path.display().to_string())
}

//! The table of the transport benchmark, and the verdicts on goal N1.

use super::super::goals::{Bound, Metric, Results, Verdict};
use super::rows::{TransportRow, rows};
use super::{RAW_TASKS, RAW_THREADS, SPARK, TASKS, THREADS};

/// The contenders, in the order of the columns.
const NAMES: [&str; 5] = [TASKS, THREADS, RAW_TASKS, RAW_THREADS, SPARK];
const COLUMNS: &str = "ours, tasks | ours, threads | raw, tasks | raw, threads | Spark";

/// The variants of ours that are judged.
const FORMS: [Form; 2] = [
    Form { goal: "N1, tasks", ours: TASKS, limit: RAW_TASKS },
    Form { goal: "N1, threads", ours: THREADS, limit: RAW_THREADS },
];

/// A goal for one kind of caller, and the contenders that it compares.
struct Form {
    goal: &'static str,
    ours: &'static str,
    limit: &'static str,
}

/// The multiple of Spark's rate that meets the goal of a row for any limit.
const ENOUGH: f64 = 1.5;
/// The multiple of Spark's rate that the median of all rows must reach.
const MEDIAN: f64 = 3.0;

/// The best and the median repetition of a row.
#[derive(Clone, Copy)]
struct Figures {
    best: f64,
    median: f64,
}

impl Figures {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        Some(Self { best: *values.first()?, median: values[values.len() / 2] })
    }

    fn seconds(results: &Results, row: &TransportRow, name: &'static str) -> Option<Self> {
        let samples = results.samples(row.id, name).iter();
        Self::of(samples.map(|measured| measured.sample.seconds).collect())
    }

    fn cpu_seconds(results: &Results, row: &TransportRow, name: &'static str) -> Option<Self> {
        let samples = results.samples(row.id, name).iter();
        Self::of(samples.map(|measured| measured.cpu_seconds).collect())
    }
}

/// Prints times and ratios, then rates and CPU times, then a summary.
pub(crate) fn print(results: &Results) {
    let measured = |row: &TransportRow| Figures::seconds(results, row, TASKS).is_some();
    let rows: Vec<_> = rows().into_iter().filter(measured).collect();
    if rows.is_empty() {
        return;
    }
    println!("\nMilliseconds, best / median; the ratios are Spark's best time / our best time");
    println!("\n| row | {COLUMNS} | tasks | threads |\n|---|---|---|---|---|---|---|---|");
    for row in &rows {
        let cells = NAMES.map(|name| cell(Figures::seconds(results, row, name), milliseconds));
        let ratios = [TASKS, THREADS].map(|name| ratio(results, row, name, SPARK));
        let ratios = ratios.map(|ratio| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")));
        println!("| {} | {} | {} |", row.title, cells.join(" | "), ratios.join(" | "));
    }
    println!("\nCPU seconds of both ends, best / median; for large bodies GB/s of the best time");
    println!("\n| row | {COLUMNS} |\n|---|---|---|---|---|---|");
    for row in &rows {
        let cells = NAMES.map(|name| {
            let cpu = Figures::cpu_seconds(results, row, name);
            let cpu = cell(cpu, |seconds| format!("{seconds:.2}"));
            match rate(results, row, name) {
                Some(rate) if row.is_bulk() => {
                    format!("{cpu}; {:.2} GB/s", rate * row.job.bytes as f64 / 1e9)
                }
                _ => cpu,
            }
        });
        println!("| {} | {} |", row.title, cells.join(" | "));
    }
    for form in &FORMS {
        let (Some(median), Some((worst, share, title))) =
            (median_ratio(results, form), worst_of_goal(results, form))
        else {
            continue;
        };
        println!(
            "\n{}: median {median:.2} times Spark (goal N1: {MEDIAN}); worst row by the goal: \
             {title}, {worst:.2} times Spark, {share:.2} of the goal",
            form.ours
        );
    }
}

/// Judges both forms of ours by goal N1, in terms of Spark's rate.
pub(crate) fn judge(results: &Results) -> Vec<Verdict> {
    FORMS.iter().flat_map(|form| judge_form(results, form)).collect()
}

fn judge_form(results: &Results, form: &Form) -> Vec<Verdict> {
    let verdict = |measurement, ours, against, ratio, bound: f64| Verdict {
        name: format!("{} {measurement}: {} / {SPARK}", form.goal, form.ours),
        goal: form.goal,
        measurement,
        metric: Metric::Rate,
        contender: form.ours,
        ours,
        against,
        ratio,
        bound: Bound::AtLeast(bound),
        met: ratio >= bound,
    };
    let row_verdict = |row: TransportRow| {
        let (ours, spark) = (rate(results, &row, form.ours)?, rate(results, &row, SPARK)?);
        let bound = required_ratio(results, &row, form)?;
        Some(verdict(row.id, ours, Some((SPARK, row.id, spark)), ours / spark, bound))
    };
    let mut verdicts: Vec<_> = rows().into_iter().filter_map(row_verdict).collect();
    if let Some(median) = median_ratio(results, form) {
        verdicts.push(verdict("transport, median of the ratios", median, None, median, MEDIAN));
    }
    verdicts
}

/// Returns the multiple of Spark's rate that goal N1 requires in `row`, with two digits.
fn required_ratio(results: &Results, row: &TransportRow, form: &Form) -> Option<f64> {
    let limit = row.share_of_limit() * ratio(results, row, form.limit, SPARK)?;
    Some((limit.min(ENOUGH) * 100.0).round() / 100.0)
}

/// Returns the median over the rows of our rate divided by Spark's.
fn median_ratio(results: &Results, form: &Form) -> Option<f64> {
    let rows = rows();
    let ratios = rows.iter().filter_map(|row| ratio(results, row, form.ours, SPARK));
    let mut ratios: Vec<_> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}

/// Returns the worst row by goal N1: its ratio, its share of the goal and its title.
fn worst_of_goal(results: &Results, form: &Form) -> Option<(f64, f64, &'static str)> {
    let shares = rows().into_iter().filter_map(|row| {
        let ratio = ratio(results, &row, form.ours, SPARK)?;
        Some((ratio, ratio / required_ratio(results, &row, form)?, row.title))
    });
    shares.min_by(|one, other| one.1.total_cmp(&other.1))
}

/// Returns the best rate of `name` divided by the best rate of `other`.
fn ratio(
    results: &Results,
    row: &TransportRow,
    name: &'static str,
    other: &'static str,
) -> Option<f64> {
    Some(rate(results, row, name)? / rate(results, row, other)?)
}

/// Returns the calls per second of the best repetition.
fn rate(results: &Results, row: &TransportRow, name: &'static str) -> Option<f64> {
    let operations = results.samples(row.id, name).first()?.sample.operations;
    Some(operations as f64 / Figures::seconds(results, row, name)?.best)
}

fn cell(figures: Option<Figures>, text: impl Fn(f64) -> String) -> String {
    let both = |figures: Figures| format!("{} / {}", text(figures.best), text(figures.median));
    figures.map_or(String::new(), both)
}

/// Formats a time in milliseconds, without a fraction from 100 ms on.
fn milliseconds(seconds: f64) -> String {
    let value = seconds * 1e3;
    format!("{value:.*}", if value < 100.0 { 1 } else { 0 })
}

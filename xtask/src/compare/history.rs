//! Records the ratios of runs in `benches/history.jsonl`, one line per run, and draws them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::goals::{Bound, Verdict};
use super::picture::label;
use super::report::Conditions;
use crate::build::ROOT;

const FILE: &str = "benches/history.jsonl";
const PICTURE: &str = "docs/history.svg";
/// The files that recording changes, as git pathspecs that exclude them.
pub(super) const EXCLUDED: [&str; 2] = [":!benches/history.jsonl", ":!docs/history.svg"];

/// A recorded run.
#[derive(Serialize, Deserialize)]
struct RecordedRun {
    commit: String,
    date: String,
    machine: Machine,
    load_average: String,
    runs: usize,
    ratios: BTreeMap<String, RecordedRatio>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
}

impl Machine {
    /// Returns whether ratios of both machines are comparable. The kernels may differ.
    fn is_like(&self, other: &Self) -> bool {
        (self.cores, &self.cpu) == (other.cores, &other.cpu)
    }
}

/// A ratio and its goal at the time of the run.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct RecordedRatio {
    ratio: f64,
    #[serde(flatten)]
    bound: Bound,
}

impl RecordedRatio {
    /// Returns the ratio relative to its goal: 1 meets the goal exactly, more is better.
    fn margin(self) -> f64 {
        match self.bound {
            Bound::AtLeast(bound) | Bound::MoreThan(bound) => self.ratio / bound,
            Bound::AtMost(bound) => bound / self.ratio,
        }
    }
}

/// Appends a run to the history and redraws the picture.
pub(super) fn record(conditions: &Conditions, verdicts: &[Verdict]) -> Result<()> {
    ensure!(!verdicts.is_empty(), "there is no verdict to record");
    let run = RecordedRun {
        commit: conditions.commit.clone(),
        date: conditions.date.clone(),
        machine: Machine {
            cores: conditions.cores,
            cpu: conditions.cpu.clone(),
            kernel: conditions.kernel.clone(),
        },
        load_average: conditions.load_average.clone(),
        runs: conditions.runs,
        ratios: verdicts
            .iter()
            .map(|verdict| {
                (verdict.name.clone(), RecordedRatio { ratio: verdict.ratio, bound: verdict.bound })
            })
            .collect(),
    };
    let path = Path::new(ROOT).join(FILE);
    let shown = || path.display().to_string();
    let mut file = OpenOptions::new().create(true).append(true).open(&path).with_context(shown)?;
    writeln!(file, "{}", serde_json::to_string(&run)?).with_context(shown)?;
    let lines = fs::read_to_string(&path).with_context(shown)?;
    let runs: Vec<RecordedRun> =
        lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().with_context(shown)?;
    let picture = Path::new(ROOT).join(PICTURE);
    fs::write(&picture, svg(&runs)).with_context(|| picture.display().to_string())?;
    println!("recorded in {FILE} and {PICTURE}");
    Ok(())
}

const WIDTH: f64 = 900.0;
/// The horizontal range of the lines.
const CHART: (f64, f64) = (490.0, 740.0);
/// The right end of the column of the latest ratios.
const LATEST: f64 = 815.0;
const ROW: f64 = 22.0;
const HEADER: f64 = 78.0;
/// Margins above this, or below its inverse, are drawn at the edge of the row.
const RANGE: f64 = 2.0;

/// Draws one row for each ratio: its line over the commits, its latest value and its goal.
fn svg(runs: &[RecordedRun]) -> String {
    let Some(latest) = runs.last() else { return String::new() };
    // Ratios of different machines are not comparable.
    let runs: Vec<_> = runs.iter().filter(|run| run.machine.is_like(&latest.machine)).collect();
    let names: BTreeSet<_> = runs.iter().flat_map(|run| run.ratios.keys()).collect();
    let x = |index: usize| {
        // The latest run is always at the right end, also if it is the only one.
        let steps = (runs.len() - 1).max(1) as f64;
        CHART.1 - (runs.len() - 1 - index) as f64 * (CHART.1 - CHART.0) / steps
    };
    let mut body = String::new();
    // Writing to a string cannot fail.
    for (row, name) in names.iter().enumerate() {
        let middle = HEADER + (row as f64 + 0.5) * ROW;
        let points: Vec<_> = runs
            .iter()
            .enumerate()
            .filter_map(|(index, run)| Some((x(index), *run.ratios.get(*name)?)))
            .map(|(x, ratio)| {
                let height = ratio.margin().log(RANGE).clamp(-1.0, 1.0) * (ROW / 2.0 - 3.0);
                (x, middle - height, ratio)
            })
            .collect();
        let Some((_, _, last)) = points.last() else { continue };
        let line: Vec<_> = points.iter().map(|(x, y, _)| format!("{x:.1},{y:.1}")).collect();
        let (start, end) = (CHART.0 - 5.0, CHART.1 + 5.0);
        let _ = writeln!(
            body,
            r##"<path d="M{start} {middle:.1}H{end}" stroke="#bbb" stroke-dasharray="2 2"/>"##,
        );
        let line = line.join(" ");
        let _ = writeln!(body, r##"<polyline points="{line}" fill="none" stroke="#1f77b4"/>"##);
        for (x, y, ratio) in &points {
            let colour = if ratio.bound.holds(ratio.ratio) { "#1f77b4" } else { "#d9541e" };
            let _ = writeln!(body, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2.5" fill="{colour}"/>"#);
        }
        let baseline = middle + 4.0;
        body += &text(CHART.0 - 12.0, baseline, &labelled(name));
        body += &text(LATEST, baseline, &short(last.ratio));
        body += &text(WIDTH, baseline, &goal(last.bound));
    }
    let height = HEADER + names.len() as f64 * ROW + 8.0;
    let mut header = text(LATEST, 70.0, "latest") + &text(WIDTH, 70.0, "goal");
    header += &text(CHART.1 + 5.0, 70.0, &latest.commit);
    if runs.len() > 1 {
        header += &text(CHART.0 + 80.0, 70.0, &runs[0].commit);
    }
    let Machine { cores, cpu, .. } = &latest.machine;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}"
    font-family="sans-serif" font-size="11" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="0" y="20" font-size="16">Ratios of recorded runs, oldest on the left</text>
<text x="0" y="36">{} to {}, {} recorded on {cores} cores of {cpu}</text>
<text x="0" y="52">dashed: the goal; above it is better; blue: met, red: missed</text>
{header}{body}</svg>
"##,
        runs[0].date,
        latest.date,
        runs.len(),
    )
}

/// Returns an SVG text that ends at `x`.
fn text(x: f64, y: f64, content: &str) -> String {
    format!("<text x=\"{x:.0}\" y=\"{y:.1}\" text-anchor=\"end\">{content}</text>\n")
}

/// Returns the name of a ratio with labels in place of the names of programs.
fn labelled(name: &str) -> String {
    name.split(' ').map(label).collect::<Vec<_>>().join(" ")
}

fn goal(bound: Bound) -> String {
    match bound {
        Bound::AtLeast(bound) => format!("\u{2265} {bound}"),
        Bound::AtMost(bound) => format!("\u{2264} {bound}"),
        Bound::MoreThan(bound) => format!("&gt; {bound}"),
    }
}

fn short(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_of_one_run_has_its_ratio_and_its_goal() {
        let line = r#"{"commit":"abc","date":"2026-01-01",
            "machine":{"cores":2,"cpu":"x","kernel":"y"},
            "load_average":"0","runs":3,"ratios":{"E1 echo":{"ratio":1.25,"at_most":1.1}}}"#;
        let run: RecordedRun = serde_json::from_str(line).unwrap();
        let again = serde_json::from_str(&serde_json::to_string(&run).unwrap()).unwrap();
        let picture = svg(&[run, again]);
        for text in ["E1 echo", "1.25", "\u{2264} 1.1", "#d9541e"] {
            assert!(picture.contains(text), "{text} is not in {picture}");
        }
        assert!(!picture.contains("NaN"), "{picture}");
    }
}

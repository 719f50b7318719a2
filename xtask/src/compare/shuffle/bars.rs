//! Draws the picture of the README: shuffle services as bars.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::super::contenders::Side;
use super::super::goals::{Metric, Results};
use super::super::picture::{Bar, Panel, svg};
use super::table::{gigabytes, per_gigabyte};
use super::{OURS, SPARK};
use crate::interop::release::Release;

const FILE: &str = "shuffle.svg";
const TITLE: &str = "External shuffle service";

/// The measurement, the metric, its factor and the title of each panel.
const PANELS: [(&str, Metric, f64, &str); 7] = [
    ("shuffle-20k-16", Metric::Rate, 1e-3, "thousand blocks of 20 KiB per second, 16 reducers"),
    ("shuffle-4m", Metric::Rate, gigabytes(4096.0), "GB per second in blocks of 4 MiB"),
    ("shuffle-20k", Metric::Cpu, per_gigabyte(20.0), "CPU seconds per GB in blocks of 20 KiB"),
    ("shuffle-4m", Metric::Cpu, per_gigabyte(4096.0), "CPU seconds per GB in blocks of 4 MiB"),
    ("shuffle-beside", Metric::P99, 1e-3, "p99 of 20 KiB beside reads of 4 MiB, milliseconds"),
    (
        "shuffle-population",
        Metric::Peak,
        1e-6,
        "peak memory with 50 000 executors and 5000 connections, MB",
    ),
    ("shuffle-start", Metric::Each, 1e-3, "milliseconds until the first registration"),
];

/// Draws the picture if both services were measured.
pub(crate) fn draw(output: &Path, release: Option<Release>, results: &Results) -> Result<()> {
    let Some(release) = release else { return Ok(()) };
    let bar = |label: &str, side, value| Bar { label: label.to_owned(), side, value };
    let panels: Vec<_> = PANELS
        .into_iter()
        .filter_map(|(id, metric, factor, title)| {
            let value = |name| Some(results.median(id, name, metric)? * factor);
            let spark = format!("Spark {release}'s service");
            let bars = vec![
                bar("shuffle-service", Side::Ours, value(OURS)?),
                bar(&spark, Side::Peer, value(SPARK)?),
            ];
            Some(Panel { title: title.to_owned(), bars })
        })
        .collect();
    if panels.is_empty() {
        return Ok(());
    }
    let path = output.join(FILE);
    fs::write(&path, svg(TITLE, &panels)).with_context(|| path.display().to_string())
}

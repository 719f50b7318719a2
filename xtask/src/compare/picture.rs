//! Draws bar charts of the rates, one SVG file per plane.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::contenders::{Side, contender};
use super::goals::{Metric, Results};
use super::plan::Measurement;
use super::report::bytes;

/// The file name, title and measurements of each chart.
const PICTURES: [(&str, &str, &[&str]); 3] = [
    (
        "control.svg",
        "Control plane: thousand operations per second",
        &["echo-1", "echo-16", "echo-128", "echo-64-tasks", "kib-128", "ask-128"],
    ),
    (
        "local.svg",
        "Within a process: thousand messages per second",
        &["local-send-1", "local-send-4", "local-send-1000", "local-ask-1", "local-ask-128"],
    ),
    (
        "bulk.svg",
        "Bulk plane: GB per second",
        &["file-1", "file-4", "file-16", "memory-1", "memory-4", "memory-16"],
    ),
];

const WIDTH: f64 = 820.0;
const LABELS: f64 = 220.0;
const VALUES: f64 = 70.0;
const LINE: f64 = 18.0;

/// Draws the charts for which there are samples.
pub(crate) fn draw(
    directory: &Path,
    measurements: &[Measurement],
    results: &Results,
) -> Result<()> {
    for (file, title, shown) in PICTURES {
        let shown = measurements.iter().filter(|measurement| shown.contains(&measurement.id));
        let panels: Vec<_> = shown.filter_map(|measurement| panel(measurement, results)).collect();
        if !panels.is_empty() {
            let path = directory.join(file);
            fs::write(&path, svg(title, &panels)).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Bars of one quantity.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) bars: Vec<Bar>,
}

/// The value of one contender.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) side: Side,
    pub(super) value: f64,
}

fn panel(measurement: &Measurement, results: &Results) -> Option<Panel> {
    let scale = bytes(measurement).map_or(1e-3, |bytes| bytes / 1e9);
    let bar = |name: &&'static str| {
        let value = results.median(measurement.id, name, Metric::Rate)? * scale;
        Some(Bar { label: label(name).to_owned(), side: contender(name).side, value })
    };
    let bars: Vec<_> = measurement.contenders.iter().filter_map(bar).collect();
    (!bars.is_empty()).then_some(Panel { title: measurement.title.to_owned(), bars })
}

/// Returns a picture with a scale of its own for each panel.
pub(super) fn svg(title: &str, panels: &[Panel]) -> String {
    let mut body = String::new();
    let mut y = 30.0;
    // Writing to a string cannot fail.
    for panel in panels {
        y += 2.0 * LINE;
        let _ = writeln!(
            body,
            r#"<text x="0" y="{:.0}" font-weight="bold">{}</text>"#,
            y - 6.0,
            panel.title
        );
        let longest = panel.bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        for Bar { label, side, value } in &panel.bars {
            let width = (value / longest * (WIDTH - LABELS - VALUES)).max(1.0);
            let (text, end) = (y + LINE - 5.0, LABELS + width + 6.0);
            let colour = match side {
                Side::Ours => "#1f77b4",
                Side::Limit => "#999999",
                Side::Peer => "#e6994d",
            };
            let _ = writeln!(
                body,
                "<text x=\"{:.0}\" y=\"{text:.0}\" text-anchor=\"end\">{label}</text>\
                 <rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{:.0}\" \
                 fill=\"{colour}\"/>\
                 <text x=\"{end:.0}\" y=\"{text:.0}\">{value:.*}</text>",
                LABELS - 6.0,
                LINE - 4.0,
                digits(*value),
            );
            y += LINE;
        }
    }
    let height = y + 10.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0}"
    font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="0" y="20" font-size="16">{title}</text>
<text x="{WIDTH}" y="20" text-anchor="end">blue: ours, grey: limits, orange: others</text>
{body}</svg>
"##
    )
}

/// Returns the number of digits behind the point.
fn digits(value: f64) -> usize {
    match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    }
}

/// Returns what a bar shows, for readers who do not know the names of the programs.
pub(super) fn label(name: &str) -> &str {
    match name {
        "ours" => "network-common",
        "ours-ctr" => "network-common, AES-CTR",
        "ours-gcm" => "network-common, AES-GCM",
        "ours-tls" => "network-common, TLS",
        "ours-rpc" | "ours-local" => "rpc-core",
        "ping-pong" => "plain tokio, one at a time",
        "batched" => "plain tokio, batched by hand",
        "smallest" => "smallest RPC client on tokio",
        "yielding" => "smallest client, yields first",
        "chunks" => "plain system calls",
        "channel" => "tokio mpsc and oneshot",
        "flight" => "arrow-flight",
        "spark" | "spark-rpc" => "Spark 4.3.0",
        "kameo-remote" => "kameo, remote",
        "ractor-cluster" => "ractor_cluster",
        other => other,
    }
}

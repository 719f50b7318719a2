//! The table of the comparison of shuffle services and block clients.

use super::super::goals::{Metric, Results};
use super::{OURS, SPARK};

/// A line of the table: a metric of a measurement, and its unit.
struct TableLine {
    id: &'static str,
    title: &'static str,
    metric: Metric,
    unit: &'static str,
    /// The number of units in one unit of the metric.
    factor: f64,
}

const fn line(
    id: &'static str,
    title: &'static str,
    metric: Metric,
    unit: &'static str,
    factor: f64,
) -> TableLine {
    TableLine { id, title, metric, unit, factor }
}

/// Converts blocks of this many KiB per second to GB/s.
pub(super) const fn gigabytes(kib: f64) -> f64 {
    kib * 1024.0 / 1e9
}

/// Converts microseconds per block of this many KiB to seconds per GB.
pub(super) const fn per_gigabyte(kib: f64) -> f64 {
    1e-6 / gigabytes(kib)
}

const SERVICES: [TableLine; 18] = {
    use Metric::{Cpu, Each, P50, P99, Peak, Rate};
    [
        line("shuffle-4m", "4 MiB, 1 reducer", Rate, "GB/s", gigabytes(4096.0)),
        line("shuffle-4m", "4 MiB, 1 reducer", Cpu, "CPU s/GB", per_gigabyte(4096.0)),
        line("shuffle-200k", "200 KiB, 1 reducer", Rate, "GB/s", gigabytes(200.0)),
        line("shuffle-200k", "200 KiB, 1 reducer", Cpu, "CPU s/GB", per_gigabyte(200.0)),
        line("shuffle-20k", "20 KiB, 1 reducer", Rate, "k blocks/s", 1e-3),
        line("shuffle-20k", "20 KiB, 1 reducer", Cpu, "CPU s/GB", per_gigabyte(20.0)),
        line("shuffle-20k-16", "20 KiB, 16 reducers", Rate, "k blocks/s", 1e-3),
        line("shuffle-20k-16", "20 KiB, 16 reducers", Cpu, "CPU s/GB", per_gigabyte(20.0)),
        line("shuffle-beside", "20 KiB beside 4 MiB", P50, "ms p50", 1e-3),
        line("shuffle-beside", "20 KiB beside 4 MiB", P99, "ms p99", 1e-3),
        line("shuffle-beside-bulk", "the 4 MiB blocks", Rate, "GB/s", gigabytes(4096.0)),
        line("shuffle-start", "start to registration", Each, "ms", 1e-3),
        line("shuffle-start", "start to registration", Cpu, "CPU s", 1e-6),
        line("shuffle-start", "after that", Peak, "MB peak", 1e-6),
        line("shuffle-register", "registrations", Rate, "k/s", 1e-3),
        line("shuffle-register", "all executors registered", Peak, "MB peak", 1e-6),
        line("shuffle-population", "and all connections", Peak, "MB peak", 1e-6),
        line("shuffle-20k-16", "20 KiB, 16 reducers", Peak, "MB peak", 1e-6),
    ]
};

const CLIENTS: [TableLine; 6] = {
    use Metric::{Cpu, Peak, Rate};
    [
        line("client-4m", "4 MiB", Rate, "GB/s", gigabytes(4096.0)),
        line("client-4m", "4 MiB", Cpu, "CPU s/GB", per_gigabyte(4096.0)),
        line("client-4m", "4 MiB", Peak, "MB peak", 1e-6),
        line("client-4m-short", "4 MiB, once", Peak, "MB peak", 1e-6),
        line("client-20k", "20 KiB", Rate, "k blocks/s", 1e-3),
        line("client-20k", "20 KiB", Cpu, "CPU s/GB", per_gigabyte(20.0)),
    ]
};

/// Prints the medians of all rows for which there are samples.
pub(crate) fn print(results: &Results) {
    print_table("Shuffle services; CPU and memory of the service", &SERVICES, results);
    print_table(
        "Block clients of shuffle-service; CPU and memory of the client",
        &CLIENTS,
        results,
    );
}

fn print_table(title: &str, lines: &[TableLine], results: &Results) {
    let mut title = Some(title);
    for TableLine { id, title: row, metric, unit, factor } in lines {
        let median = |name| results.median(id, name, *metric).map(|value| value * factor);
        let Some(ours) = median(OURS) else { continue };
        if let Some(title) = title.take() {
            println!("\n{title}\n\n| | | ours | Spark | ours / Spark |\n|---|---|---|---|---|");
        }
        let spark = median(SPARK);
        let cell = |value: Option<f64>| value.map_or(String::new(), short);
        let ratio = cell(results.ratio(id, [OURS, SPARK], *metric));
        println!("| {row} | {unit} | {} | {} | {ratio} |", short(ours), cell(spark));
    }
}

/// Formats a value with three digits at least.
fn short(value: f64) -> String {
    let digits = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.digits$}")
}

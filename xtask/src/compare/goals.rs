//! The performance goals, and the verdicts on them.

use std::collections::BTreeMap;

use bench_protocol::Latency;
use serde::{Deserialize, Serialize};

use super::pair::Measured;

/// Samples by measurement and contender, in the order of the runs.
#[derive(Default)]
pub(crate) struct Results(BTreeMap<(&'static str, &'static str), Vec<Measured>>);

impl Results {
    pub(crate) fn add(
        &mut self,
        measurement: &'static str,
        contender: &'static str,
        measured: Measured,
    ) {
        self.0.entry((measurement, contender)).or_default().push(measured);
    }

    /// Returns all samples, ordered by measurement and contender.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, &[Measured])> {
        self.0
            .iter()
            .map(|((measurement, contender), samples)| (*measurement, *contender, &samples[..]))
    }

    /// Returns the samples of `contender` in the measurement `id`, in the order of the runs.
    pub(crate) fn samples(&self, id: &'static str, contender: &'static str) -> &[Measured] {
        self.0.get(&(id, contender)).map_or(&[], Vec::as_slice)
    }

    /// Returns one value for each run.
    fn values(&self, what: &Quantity) -> Vec<f64> {
        let samples = self.samples(what.measurement, what.contender);
        samples.iter().filter_map(|measured| what.metric.of(measured)).collect()
    }

    /// Returns the median of a metric over the runs.
    pub(crate) fn median(
        &self,
        measurement: &'static str,
        contender: &'static str,
        metric: Metric,
    ) -> Option<f64> {
        median(self.values(&Quantity { measurement, contender, metric }))
    }

    /// Returns the median over the runs of the first contender's value divided by the second's.
    pub(crate) fn ratio(
        &self,
        measurement: &'static str,
        contenders: [&'static str; 2],
        metric: Metric,
    ) -> Option<f64> {
        let of = |contender| Quantity { measurement, contender, metric };
        self.ratio_of(&of(contenders[0]), &of(contenders[1]))
    }

    /// Returns the median ratio within a run, because a disturbance affects both contenders.
    fn ratio_of(&self, one: &Quantity, other: &Quantity) -> Option<f64> {
        let (one, other) = (self.values(one), self.values(other));
        median(one.iter().zip(&other).map(|(one, other)| one / other).collect())
    }
}

/// A number that is computed from a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Operations per second.
    Rate,
    /// Median latency in microseconds.
    P50,
    P99,
    P999,
    P9999,
    /// The highest latency in microseconds.
    Slowest,
    /// The elapsed time divided by the operations, in microseconds.
    Each,
    /// CPU time of both processes in microseconds per operation.
    Cpu,
    /// System calls of both processes per operation.
    SystemCalls,
    /// The sum of both processes' peak resident memory in bytes.
    Peak,
    /// The number that is stored in place of the operations.
    Value,
}

impl Metric {
    pub(crate) fn of(self, measured: &Measured) -> Option<f64> {
        let operations = measured.sample.operations as f64;
        let latency = |field: fn(Latency) -> f64| measured.sample.latency.map(field);
        match self {
            // System calls are counted in separate runs, which are slower.
            Self::SystemCalls => measured.system_calls.map(|calls| calls as f64 / operations),
            _ if measured.system_calls.is_some() => None,
            Self::Rate => Some(operations / measured.sample.seconds),
            Self::P50 => latency(|latency| latency.p50),
            Self::P99 => latency(|latency| latency.p99),
            Self::P999 => latency(|latency| latency.p999),
            Self::P9999 => latency(|latency| latency.p9999),
            Self::Slowest => latency(|latency| latency.max),
            Self::Each => Some(measured.sample.seconds / operations * 1e6),
            Self::Cpu => Some(measured.cpu_seconds / operations * 1e6),
            Self::Peak => Some(measured.peak_bytes as f64),
            Self::Value => Some(operations),
        }
    }
}

#[derive(Clone, Copy, Serialize)]
struct Quantity {
    measurement: &'static str,
    contender: &'static str,
    metric: Metric,
}

impl Quantity {
    /// Returns its name in a comparison with a quantity of `measurement`.
    fn beside(&self, measurement: &str) -> String {
        if self.measurement == measurement {
            return self.contender.to_owned();
        }
        format!("{} {}", self.contender, self.measurement)
    }
}

/// The required ratio, or the required value if there is no other contender.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    MoreThan(f64),
}

impl Bound {
    pub(crate) fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::MoreThan(bound) => value > bound,
        }
    }
}

struct Goal {
    id: &'static str,
    ours: Quantity,
    /// The quantities to compare with. Of several, the smallest one is used.
    against: Vec<Quantity>,
    bound: Bound,
}

/// The result of a goal for which there are samples.
#[derive(Serialize)]
pub(crate) struct Verdict {
    /// Goal, measurement, metric and contenders. It is the same in all runs.
    pub(crate) name: String,
    pub(crate) goal: &'static str,
    pub(crate) measurement: &'static str,
    pub(crate) metric: Metric,
    pub(crate) contender: &'static str,
    pub(crate) ours: f64,
    /// The other contender with its measurement and value.
    pub(crate) against: Option<(&'static str, &'static str, f64)>,
    /// The median ratio over the runs, or the value if there is no other contender.
    pub(crate) ratio: f64,
    pub(crate) bound: Bound,
    pub(crate) met: bool,
}

/// Judges all goals for which there are samples.
pub(crate) fn judge(results: &Results) -> Vec<Verdict> {
    let mut verdicts: Vec<_> = goals().iter().filter_map(|goal| verdict(goal, results)).collect();
    verdicts.sort_by_key(|verdict| ("EALBCRS".find(&verdict.goal[..1]), verdict.goal));
    verdicts
}

fn verdict(goal: &Goal, results: &Results) -> Option<Verdict> {
    let ours = median(results.values(&goal.ours))?;
    let limits = goal.against.iter().map(|what| Some((what, median(results.values(what))?)));
    let limits = limits.collect::<Option<Vec<_>>>()?;
    let (ratio, against) = match limits.into_iter().min_by(|one, other| one.1.total_cmp(&other.1)) {
        None => (ours, None),
        Some((what, limit)) => {
            let ratio = results.ratio_of(&goal.ours, what)?;
            (ratio, Some((what.contender, what.measurement, limit)))
        }
    };
    let Quantity { measurement, contender, metric } = goal.ours;
    let met = goal.bound.holds(ratio);
    let metric_name = format!("{metric:?}").to_lowercase();
    let mut name = format!("{} {measurement} {metric_name}: {contender}", goal.id);
    if !goal.against.is_empty() {
        // All limits, because the smallest one may change from run to run.
        let limits: Vec<_> = goal.against.iter().map(|what| what.beside(measurement)).collect();
        name = format!("{name} / {}", limits.join(" or "));
    }
    Some(Verdict {
        name,
        goal: goal.id,
        measurement,
        metric,
        contender,
        ours,
        against,
        ratio,
        bound: goal.bound,
        met,
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Returns all goals except N1, which `transport` judges.
fn goals() -> Vec<Goal> {
    use Bound::{AtLeast, AtMost, MoreThan};
    use Metric::{Cpu, Each, P50, P99, P999, Peak, Rate, Slowest, SystemCalls, Value};
    let what = |contender, measurement, metric| Quantity { measurement, contender, metric };
    let mut goals = Vec::new();
    // Compares ours with another contender in the same measurement.
    let mut beside = |id, ours, measurement, metric, bounds: &[(&'static str, Bound)]| {
        for (contender, bound) in bounds {
            let against = vec![what(contender, measurement, metric)];
            goals.push(Goal { id, ours: what(ours, measurement, metric), against, bound: *bound });
        }
    };
    beside("E1", "ours", "echo-1-pinned", P50, &[("ping-pong", AtMost(1.1))]);
    beside("E1", "ours", "echo-1-pinned", P99, &[("ping-pong", AtMost(1.3))]);
    beside("E1", "ours", "echo-1", P50, &[("ping-pong", AtMost(1.15))]);
    let few = [("batched", AtLeast(1.0)), ("tarpc", AtLeast(2.0))];
    let many = |tonic| {
        [
            ("batched", AtLeast(0.65)),
            ("tarpc", AtLeast(6.0)),
            ("tonic", AtLeast(tonic)),
            ("spark", AtLeast(18.0)),
        ]
    };
    beside("E2", "ours", "echo-16", Rate, &few);
    beside("E3", "ours", "echo-128", Rate, &many(30.0));
    beside("E3", "ours", "echo-1024", Rate, &[("tarpc", AtLeast(4.0))]);
    let shared = [("yielding", AtLeast(0.8)), ("tarpc", AtLeast(6.0)), ("tonic", AtLeast(15.0))];
    beside("E4", "ours", "echo-64-tasks", Rate, &shared);
    beside("E5", "ours", "kib-16", Rate, &few);
    beside("E5", "ours", "kib-128", Rate, &many(25.0));
    beside("E5", "ours", "kib-1024", Rate, &[("tarpc", AtLeast(4.0))]);
    beside("E5", "ours", "kib-64-tasks", Rate, &shared);
    for measurement in ["echo-128", "kib-128"] {
        beside("E5", "ours", measurement, Cpu, &[("smallest", AtMost(1.4))]);
    }
    let actors = [
        ("ractor-cluster", AtLeast(8.0)),
        ("kameo-remote", AtLeast(40.0)),
        ("spark-rpc", AtLeast(15.0)),
    ];
    beside("A2", "ours-rpc", "ask-128", Rate, &actors);
    for measurement in
        ["local-send-1", "local-send-4", "local-send-1000", "local-ask-1", "local-ask-128"]
    {
        let ahead = MoreThan(1.0);
        let bounds =
            [("channel", AtLeast(0.7)), ("actix", ahead), ("kameo", ahead), ("ractor", ahead)];
        beside("L1", "ours-local", measurement, Rate, &bounds);
    }
    beside("B1", "ours", "file-4", Rate, &[("chunks", AtLeast(0.95))]);
    beside("B1", "ours", "file-4", Cpu, &[("chunks", AtMost(1.1))]);
    beside("B2", "ours", "file-4", Rate, &[("flight", AtLeast(3.0)), ("spark", AtLeast(1.3))]);
    beside("B3", "ours", "memory-4", Rate, &[("chunks", AtLeast(0.95)), ("hyper", AtLeast(1.0))]);

    for ours in ["ours", "ours-rpc"] {
        let bounds = [("tonic", AtMost(0.2)), ("tarpc", AtMost(0.5))];
        beside("R1", ours, "rate-tonic", P999, &bounds);
    }

    for measurement in ["shuffle-4m", "shuffle-200k", "shuffle-20k"] {
        beside("S4", "ours", measurement, Cpu, &[("spark", AtMost(0.25))]);
    }
    beside("S5", "ours", "shuffle-population", Peak, &[("spark", AtMost(0.1))]);
    for measurement in ["shuffle-20k", "shuffle-20k-16"] {
        beside("S6", "ours", measurement, Rate, &[("spark", AtLeast(3.0))]);
    }
    beside("S7", "ours", "shuffle-beside", P99, &[("spark", AtMost(0.33))]);
    beside("S8", "ours", "client-20k", Rate, &[("spark", AtLeast(2.0))]);
    beside("S8", "ours", "client-4m", Rate, &[("spark", AtLeast(1.3))]);

    for measurement in ["secured-file", "secured-memory"] {
        for (id, ours, cipher) in [
            ("C1", "ours-ctr", "cipher-ctr"),
            ("C2", "ours-gcm", "cipher-gcm"),
            ("C3", "ours-tls", "cipher-tls"),
        ] {
            let rate = |contender| what(contender, measurement, Rate);
            let against = vec![rate("ours"), rate(cipher)];
            goals.push(Goal { id, ours: rate(ours), against, bound: AtLeast(0.7) });
        }
    }

    let mut between = |id, ours, against: Option<Quantity>, bound| {
        goals.push(Goal { id, ours, against: Vec::from_iter(against), bound })
    };
    for measurement in ["echo-128", "kib-128"] {
        between("E5", what("ours", measurement, SystemCalls), None, AtMost(0.1));
    }
    let typed = |measurement, metric| what("ours-rpc", measurement, metric);
    between(
        "A1",
        typed("echo-1-pinned", P50),
        Some(what("ping-pong", "echo-1-pinned", P50)),
        AtMost(1.3),
    );
    between("A2", typed("ask-128", Rate), Some(what("ours", "ask-echo-128", Rate)), AtLeast(0.5));
    between("A3", typed("send", Rate), Some(typed("ask-128", Rate)), AtLeast(2.0));
    let ours = |measurement, metric| what("ours", measurement, metric);
    between("B4", ours("file-4-long", Peak), Some(ours("file-4-short", Peak)), AtMost(1.1));
    between("B5", ours("to-file", Rate), Some(ours("then-write", Rate)), AtLeast(1.0));
    between("B5", ours("to-file", Peak), Some(ours("file-4-short", Peak)), AtMost(1.1));
    between("B6", ours("beside", P99), Some(ours("beside", Each)), AtMost(1.5));
    between("B6", ours("apart", P99), Some(ours("alone", P99)), AtMost(3.0));
    between("S5", ours("shuffle-population", Peak), None, AtMost(120e6));
    between("S8", ours("client-4m", Peak), Some(ours("client-4m-short", Peak)), AtMost(1.1));
    for contender in ["server", "client"] {
        between("S1", what(contender, "bytes-per-connection", Value), None, AtMost(3072.0));
    }
    for (large, small) in [
        ("endpoints-100000", "endpoints-1"),
        ("connections-5000", "connections-1"),
        ("asks-100000", "asks-1"),
    ] {
        between("S2", what("scale", large, Each), Some(what("scale", small, Each)), AtMost(1.3));
    }
    // A round that stalls takes much longer than the median.
    between(
        "S3",
        what("scale", "fan-out", Slowest),
        Some(what("scale", "fan-out", P50)),
        AtMost(10.0),
    );
    between("L2", what("ours-local", "bytes-per-actor", Value), None, AtMost(800.0));
    goals
}

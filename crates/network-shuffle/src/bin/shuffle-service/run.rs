//! Starts the service, waits for a signal, and stops it.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use network_common::{ErrorKind, TransportConf, TransportMetrics, load_settings};
use network_shuffle::{ServiceError, ServiceMetricsSnapshot, ShuffleService, ShuffleServiceConf};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::AdminEndpoint;
use crate::arguments::Arguments;
use crate::modes::Modes;

/// The module name of Spark's shuffle transport.
const MODULE: &str = "shuffle";

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let tables = [(TransportConf::SETTINGS, MODULE), (ShuffleServiceConf::SETTINGS, MODULE)];
    let mut settings = load_settings(arguments.properties_file.as_deref(), &tables)
        .context("correct --properties-file")?;
    settings.extend_from_slice(&arguments.settings);
    let pairs = || settings.iter().map(|(key, value)| (key, value));
    let conf = ShuffleServiceConf::from_settings(pairs())?;
    let transport = TransportConf::from_settings(MODULE, pairs())?;
    for key in conf.unknown_keys() {
        tracing::warn!("{key}");
    }
    let modes = Modes::new(&settings, &transport);

    let (mut terminate, mut interrupt, mut report) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::user_defined1())?,
    );
    let admin = AdminEndpoint::bind(arguments.admin_address).await?;
    let service = ShuffleService::start(&conf, transport, None).await.map_err(explain)?;
    println!("shuffle-service is listening on {}", service.local_addr());
    print_modes(&conf, &service, &modes);
    if let Some(address) = admin.local_addr()? {
        println!("administration: http://{address}/metrics");
    }
    let report = async {
        while report.recv().await.is_some() {
            print_values(&service.metrics(), &service.transport_metrics());
        }
    };
    let stop = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        never = async { tokio::join!(report, admin.serve(&service)).1 } => match never {},
    };

    let timeout = arguments.drain_timeout;
    println!("shuffle-service is stopping after {stop}; active requests have {timeout:?}");
    let (start, transport) = (Instant::now(), service.transport_metrics());
    let report = tokio::select! {
        report = service.close(timeout) => report,
        _ = terminate.recv() => bail!("stopped by a second SIGTERM"),
        _ = interrupt.recv() => bail!("stopped by a second SIGINT"),
    };
    print_values(&report.metrics, &transport);
    println!(
        "shuffle-service has stopped after {:?}; {} connections had active requests",
        start.elapsed(),
        report.closed_early
    );
    Ok(())
}

/// Adds to an error what the operator can do.
fn explain(error: ServiceError) -> anyhow::Error {
    let advice = match &error {
        ServiceError::Transport(error) if error.kind() == ErrorKind::Bind => {
            "set spark.shuffle.service.host and spark.shuffle.service.port to a free address"
        }
        _ => "the service cannot start",
    };
    anyhow::Error::new(error).context(advice)
}

fn print_modes(conf: &ShuffleServiceConf, service: &ShuffleService, modes: &Modes) {
    match conf.db_file() {
        Some(file) => println!(
            "registrations: {}, with {} executors",
            file.display(),
            service.metrics().registered_executors
        ),
        None => println!("registrations: in memory only (spark.shuffle.service.db.enabled=false)"),
    }
    let dirs: Vec<_> = conf.local_dirs().iter().map(|dir| dir.display().to_string()).collect();
    match &dirs[..] {
        [] => println!("local directories of executors: any (spark.local.dir is not set)"),
        dirs => println!("local directories of executors: below {}", dirs.join(", ")),
    }
    println!("{modes}");
}

/// Prints the counters, one in each line.
fn print_values(metrics: &ServiceMetricsSnapshot, transport: &TransportMetrics) {
    for (name, value) in metrics.named_values() {
        println!("{name} {value}");
    }
    for (name, value) in transport.server().named_values() {
        println!("{name} {value}");
    }
}

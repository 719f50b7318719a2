//! Starts the service, waits for a signal, and stops it.

use anyhow::{Context, Result};
use network_common::{TransportConf, load_settings};
use network_shuffle::{ShuffleService, ShuffleServiceConf};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::Arguments;

/// The module name of Spark's shuffle transport.
const MODULE: &str = "shuffle";

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let tables = [(TransportConf::SETTINGS, MODULE), (ShuffleServiceConf::SETTINGS, MODULE)];
    let mut settings = load_settings(arguments.properties_file.as_deref(), &tables)?;
    settings.extend_from_slice(&arguments.settings);
    let pairs = || settings.iter().map(|(key, value)| (key, value));
    let conf = ShuffleServiceConf::from_settings(pairs())?;
    let transport = TransportConf::from_settings(MODULE, pairs())?;

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let service = ShuffleService::start(&conf, transport, None).await.context("cannot start")?;
    println!("shuffle-service is listening on {}", service.local_addr());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let metrics = service.metrics();
    let closed_early = service.close(arguments.drain_timeout).await;
    println!("shuffle-service has stopped; {closed_early} connections had active requests");
    for (name, value) in metrics.named_values() {
        println!("{name} {value}");
    }
    Ok(())
}

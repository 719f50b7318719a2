//! A small cluster with the message flow of Spark's standalone cluster manager.
//!
//! Run it with `cargo run --example standalone_cluster`.
//!
//! 1. Workers register with a master.
//! 2. A driver registers an application.
//! 3. The master requests workers to launch executors for the application.
//! 4. The executors register with the driver's scheduler, which sends them tasks.
//! 5. The executors serve the results as blocks over network-common, and the driver fetches them.
//!
//! One worker is lost during the run, and its tasks run again on other executors.
//!
//! Without arguments, all roles run in one process. Each role can also run in a process of its own,
//! with any number of workers:
//!
//! ```text
//! standalone_cluster --role master --bind 127.0.0.1:7077
//! standalone_cluster --role worker --masters 127.0.0.1:7077
//! standalone_cluster --role driver --masters 127.0.0.1:7078,127.0.0.1:7077
//! ```

mod blocks;
mod driver;
mod executor;
mod master;
mod worker;

use anyhow::{Context, bail};
use rpc_core::{RpcAddress, RpcEnv};

use crate::worker::Launcher;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let mut arguments = std::env::args().skip(1);
    let (mut role, mut bind, mut masters, mut launch) =
        (None, "127.0.0.1:7077".to_owned(), Vec::new(), None);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} needs a value"))?;
        match &*flag {
            "--role" => role = Some(value),
            "--bind" => bind = value,
            "--masters" => masters = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--launch" => launch = Some(value),
            _ => bail!("unknown option {flag}"),
        }
    }
    match role.as_deref() {
        None => run_all_roles().await,
        Some("master") => {
            master::start(&bind).await?.await_termination().await;
            Ok(())
        }
        Some("worker") => {
            let id = format!("worker-{}", std::process::id());
            worker::start(&id, &masters, Launcher::OwnProcesses).await?.await_termination().await;
            Ok(())
        }
        Some("driver") => report(driver::run(&masters, |_| {}).await?),
        Some("executor") => executor::run_launched(&launch.context("--launch is missing")?).await,
        Some(other) => bail!("unknown role {other}"),
    }
}

/// Runs a master, three workers and a driver, and shuts down one worker during the run.
async fn run_all_roles() -> anyhow::Result<()> {
    let master = master::start("127.0.0.1:0").await?;
    let address = master.address().context("the master has no address")?.clone();
    // No master listens on the first address, so the driver and the workers try the second.
    let masters = [RpcAddress::new("127.0.0.1", 1), address];
    let mut workers = Vec::new();
    for n in 1..=3 {
        workers.push(worker::start(&format!("worker-{n}"), &masters, Launcher::ThisProcess).await?);
    }
    let lost = workers[0].clone();
    let primes = driver::run(&masters, move |results| {
        if results == 5 {
            println!("cluster:  shuts down worker-1");
            drop(lost.shutdown());
        }
    });
    report(primes.await?)?;
    for env in workers.iter().chain([&master]) {
        RpcEnv::shutdown(env).await;
    }
    Ok(())
}

fn report(primes: usize) -> anyhow::Result<()> {
    println!("driver:   there are {primes} primes below {}", driver::LIMIT);
    anyhow::ensure!(primes == 78_498, "the number of primes is wrong");
    Ok(())
}

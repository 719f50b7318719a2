//! A small cluster, as Spark's standalone one: `cargo run --example standalone_cluster`.
//!
//! Workers register with a master. A driver registers an application; the master has workers launch
//! executors for it; these register with the driver's scheduler, get tasks, and serve the results
//! as blocks through network-common, where the driver fetches them. One worker is lost on the way,
//! and its tasks go to others.
//!
//! All of it runs in this process, or each role in one of its own:
//!
//! ```text
//! standalone_cluster --role master --bind 127.0.0.1:7077
//! standalone_cluster --role worker --masters 127.0.0.1:7077      # as many as you like
//! standalone_cluster --role driver --masters 127.0.0.1:7078,127.0.0.1:7077
//! ```

mod blocks;
mod driver;
mod executor;
mod master;
mod worker;

mod standalone {
    rpc_core::include_proto!("standalone");
}

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
        None => everything().await,
        Some("master") => {
            master::start(&bind).await?.await_termination().await;
            Ok(())
        }
        Some("worker") => {
            let id = format!("worker-{}", std::process::id());
            worker::start(&id, &masters, Launcher::Processes).await?.await_termination().await;
            Ok(())
        }
        Some("driver") => report(driver::run(&masters, |_| {}).await?),
        Some("executor") => executor::run_launched(&launch.context("--launch is missing")?).await,
        Some(other) => bail!("unknown role {other}"),
    }
}

/// A master, three workers, of which one is lost, and a driver.
async fn everything() -> anyhow::Result<()> {
    let master = master::start("127.0.0.1:0").await?;
    let at = master.address().context("a master listens")?.clone();
    // The first is not there: the driver and the workers go on to the next.
    let masters = [RpcAddress::new("127.0.0.1", 1), at];
    let mut workers = Vec::new();
    for n in 1..=3 {
        workers.push(worker::start(&format!("worker-{n}"), &masters, Launcher::Here).await?);
    }
    let lost = workers[0].clone();
    let results = driver::run(&masters, move |finished| {
        if finished == 5 {
            println!("cluster:  worker-1 goes down");
            drop(lost.shutdown());
        }
    });
    report(results.await?)?;
    for env in workers.iter().chain([&master]) {
        RpcEnv::shutdown(env).await;
    }
    Ok(())
}

fn report(primes: usize) -> anyhow::Result<()> {
    println!("driver:   there are {primes} primes below {}", driver::LIMIT);
    anyhow::ensure!(primes == 78_498, "that is wrong");
    Ok(())
}

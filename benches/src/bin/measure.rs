//! Ours and the limits in separate processes, interleaved; prints medians and ratios.
//!
//! `measure [--runs 3] [echo] [bulk]` starts its own servers. Pin it with `taskset -c 0` for latency, and run it under
//! cubic for bulk; only ratios inside one run mean anything.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use benches::{cached_file, ours, raw};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const FILE: usize = 1 << 30;
const BODY: usize = 64;

#[derive(Parser)]
struct Options {
    /// Interleaved runs; medians are printed.
    #[arg(long, default_value_t = 3, global = true)]
    runs: usize,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Echo RPCs of 64 bytes.
    Echo,
    /// Chunks of a page-cached file.
    Bulk,
    /// Memory per idle connection, after one call on each.
    Idle,
    /// Internal: the other process.
    #[command(hide = true)]
    Serve { kind: String, file: Option<std::path::PathBuf> },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    // On a worker: the main thread is not one, and every wake from there to the connection would cross threads.
    match options.what {
        What::Echo => tokio::spawn(echo(options.runs)).await?,
        What::Bulk => tokio::spawn(bulk(options.runs)).await?,
        What::Idle => tokio::spawn(idle()).await?,
        What::Serve { kind, file } => serve(&kind, file.as_deref()).await,
    }
}

async fn serve(kind: &str, file: Option<&Path>) -> anyhow::Result<()> {
    const ADDRESS: &str = "127.0.0.1:0";
    let file = file.map(Path::to_owned).unwrap_or_default();
    let mut server = None;
    let address = match kind {
        "ours" => {
            let running = ours::serve(ADDRESS, ours::Chunks::File(file, FILE as u64)).await?;
            let address = running.local_addr();
            server = Some(running);
            address
        }
        "raw-echo" => raw::serve_echo(ADDRESS).await?,
        "raw-file" => raw::serve_file(ADDRESS, file, FILE as u64).await?,
        other => anyhow::bail!("no server of kind {other}"),
    };
    println!("{address}");
    // Until the parent goes.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
    drop(server);
    Ok(())
}

async fn start(kind: &str, file: Option<&Path>) -> anyhow::Result<(Child, SocketAddr)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", kind]).args(file).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let address = lines.next_line().await?.context("the server did not start")?.parse()?;
    Ok((child, address))
}

async fn echo(runs: usize) -> anyhow::Result<()> {
    let (_ours, ours_at) = start("ours", None).await?;
    let (_raw, raw_at) = start("raw-echo", None).await?;
    let body = Bytes::from(vec![7; BODY]);
    let client = ours::connect(ours_at).await?;
    let frame = BODY + raw::HEADER;
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (_, mut mine) = ours::echo(&client, body.clone(), 1, 50_000).await?;
        let mut limit = raw::ping_pong(raw_at, frame, 50_000).await?;
        mine.sort();
        limit.sort();
        let at =
            |sorted: &[Duration], share: f64| sorted[(sorted.len() as f64 * share) as usize].as_secs_f64();
        p50.push((at(&mine, 0.5), at(&limit, 0.5)));
        p99.push((at(&mine, 0.99), at(&limit, 0.99)));
    }
    print("E1 p50, us", &p50, 1e6);
    print("E1 p99, us", &p99, 1e6);
    for (window, count) in [(16, 300_000), (128, 1_500_000), (1024, 3_000_000)] {
        let mut rates = Vec::new();
        for _ in 0..runs {
            let (mine, _) = ours::echo(&client, body.clone(), window, count).await?;
            let limit = raw::echo(raw_at, frame, window, count).await?;
            rates.push((rate(count, mine), rate(count, limit)));
        }
        print(&format!("{window} in flight, k/s"), &rates, 1e-3);
    }
    let mut rates = Vec::new();
    for _ in 0..runs {
        let mine = ours::echo_tasks(&client, body.clone(), 64, 500_000).await?;
        let limit = raw::echo(raw_at, frame, 64, 500_000).await?;
        rates.push((rate(500_000, mine), rate(500_000, limit)));
    }
    print("64 tasks (limit: one task, 64 in flight), k/s", &rates, 1e-3);
    Ok(())
}

async fn bulk(runs: usize) -> anyhow::Result<()> {
    let file = cached_file(FILE)?;
    let (_ours, ours_at) = start("ours", Some(file.path())).await?;
    let (_raw, raw_at) = start("raw-file", Some(file.path())).await?;
    let client = ours::connect(ours_at).await?;
    for size in [1 << 20, 4 << 20, 16 << 20] {
        let count = 2 * FILE / size;
        let mut rates = Vec::new();
        for _ in 0..runs {
            let mine = ours::fetch(&client, size, 4, count).await?;
            let limit = raw::fetch(raw_at, size, 4, count).await?;
            rates.push((rate(2 * FILE, mine), rate(2 * FILE, limit)));
        }
        print(&format!("B1 chunks of {} MiB, GB/s", size >> 20), &rates, 1e-9);
    }
    Ok(())
}

async fn idle() -> anyhow::Result<()> {
    const CONNECTIONS: usize = 5000;
    let (server, address) = start("ours", None).await?;
    let server = server.id().context("the server has gone")?;
    let context = network_common::TransportContext::new(
        network_common::TransportConf::new("bench"),
        network_common::NoOpRpcHandler::new(),
    );
    let factory = context.create_client_factory();
    let mut clients = Vec::with_capacity(2 * CONNECTIONS);
    let mut before = (0, 0);
    for made in 0..2 * CONNECTIONS {
        if made == CONNECTIONS {
            // The first half warms allocator and tables up.
            before = (resident(std::process::id())?, resident(server)?);
        }
        let client = factory.create_unmanaged_client(address).await?;
        client.send_rpc("x").await?;
        clients.push(client);
    }
    let after = (resident(std::process::id())?, resident(server)?);
    let per = |before: usize, after: usize| (after.saturating_sub(before)) as f64 / CONNECTIONS as f64;
    println!(
        "S1 bytes per idle connection: client {:.0}, server {:.0}",
        per(before.0, after.0),
        per(before.1, after.1)
    );
    Ok(())
}

/// Resident memory of a process in bytes.
fn resident(process: u32) -> anyhow::Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no value")?.parse::<usize>()? << 10)
}

fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Medians of ours, of the limit, and of their ratio.
fn print(what: &str, pairs: &[(f64, f64)], scale: f64) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mine = median(pairs.iter().map(|pair| pair.0 * scale).collect());
    let limit = median(pairs.iter().map(|pair| pair.1 * scale).collect());
    let ratio = median(pairs.iter().map(|pair| pair.0 / pair.1).collect());
    println!("{what:<48} ours {mine:>9.2}   limit {limit:>9.2}   ratio {ratio:.2}");
}

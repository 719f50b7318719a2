//! Reads the blocks of a shuffle from a shuffle service, or from the port of an executor.
//!
//! ```text
//! cargo run --release -p examples --features shuffle --example read_shuffle -- \
//!     HOST:PORT APP EXECUTOR SHUFFLE MAPS REDUCES [--conf KEY=VALUE]... [--dirs-from HOST:PORT]
//! ```
//!
//! MAPS and REDUCES are numbers and ranges, such as `0-3,7`. Prints the length and the SHA-256
//! digest of each block. With `--dirs-from`, the executor is first registered with the directories
//! that the service at that address knows. Settings are Spark's, with `spark.authenticate.secret`.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use network_common::auth::{Secret, SecretStore};
use network_common::{NoOpRpcHandler, PeerAddress, TransportConf, TransportContext};
use network_shuffle::client::{BlockClientConf, BlockLocation, ExternalBlockStoreClient};
use network_shuffle::protocol::{BlockId, ExecutorShuffleInfo};
use sha2::{Digest, Sha256};

const USAGE: &str = "usage: read_shuffle HOST:PORT APP EXECUTOR SHUFFLE MAPS REDUCES \
                     [--conf KEY=VALUE]... [--dirs-from HOST:PORT]";
/// The driver of an application knows the sizes of its blocks; this program does not.
const EXPECTED_SIZE: u64 = 1 << 20;
/// The default of Spark's executors.
const SUB_DIRS: i32 = 64;
const MANAGER: &str = "org.apache.spark.shuffle.sort.SortShuffleManager";

/// The options behind the positional arguments.
#[derive(Default)]
struct Options {
    settings: Vec<(String, String)>,
    dirs_from: Option<PeerAddress>,
}

fn parse_options(mut words: impl Iterator<Item = String>) -> anyhow::Result<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let value = words.next().context(USAGE)?;
        match &word[..] {
            "--conf" => {
                let (key, value) = value.split_once('=').context(USAGE)?;
                options.settings.push((key.to_owned(), value.to_owned()));
            }
            "--dirs-from" => options.dirs_from = Some(value.parse()?),
            _ => bail!(USAGE),
        }
    }
    Ok(options)
}

/// Parses numbers and ranges such as `0-3,7`.
fn parse_ranges(text: &str) -> anyhow::Result<Vec<RangeInclusive<i64>>> {
    let parse = |range: &str| {
        let (start, end) = range.split_once('-').unwrap_or((range, range));
        Ok(start.parse()?..=end.parse()?)
    };
    text.split(',').map(parse).collect::<anyhow::Result<_>>().with_context(|| text.to_owned())
}

fn connect(
    app_id: &str,
    settings: &[(String, String)],
) -> anyhow::Result<ExternalBlockStoreClient> {
    let pairs = || settings.iter().map(|(key, value)| (key, value));
    let transport = TransportConf::from_settings("shuffle", pairs())?;
    let authenticates = transport.authenticate();
    let mut context = TransportContext::new(transport, NoOpRpcHandler::new());
    if authenticates {
        let secret = pairs().find(|(key, _)| *key == "spark.authenticate.secret");
        let (_, secret) = secret.context("spark.authenticate.secret is not set")?;
        let secrets = SecretStore::new();
        secrets.register_app(app_id, Secret::new(&secret[..]));
        context = context.with_auth(app_id, Arc::new(secrets))?;
    }
    let conf = BlockClientConf::from_settings(pairs())?;
    Ok(ExternalBlockStoreClient::new(context, app_id, conf))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let mut next = || words.next().context(USAGE);
    let address: PeerAddress = next()?.parse()?;
    let (app_id, exec_id) = (next()?, next()?);
    let shuffle_id = next()?.parse()?;
    let (maps, reduces) = (parse_ranges(&next()?)?, parse_ranges(&next()?)?);
    let options = parse_options(words)?;

    let client = connect(&app_id, &options.settings)?;
    let location = BlockLocation::new(address, &exec_id);
    if let Some(known) = options.dirs_from {
        let mut dirs = client.host_local_dirs(known, [&exec_id]).await?;
        let dirs = dirs.remove(&exec_id).context("the directories are not known")?;
        client.register(&location, ExecutorShuffleInfo::new(dirs, SUB_DIRS, MANAGER)).await?;
    }

    let mut blocks = Vec::new();
    for map_id in maps.into_iter().flatten() {
        for reduce_id in reduces.iter().cloned().flatten() {
            let reduce_id = i32::try_from(reduce_id)?;
            blocks.push((BlockId::Shuffle { shuffle_id, map_id, reduce_id }, EXPECTED_SIZE));
        }
    }
    let (start, mut bytes, mut failed) = (Instant::now(), 0, 0);
    let count = blocks.len();
    let mut stream = client.fetch_shuffle([(location, blocks)]);
    while let Some(block) = stream.next().await {
        match block.result {
            Ok(buffer) => {
                let content = buffer.read().await?;
                bytes += content.len();
                let digest: String =
                    Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
                println!("BLOCK {} {} {digest}", block.id, content.len());
            }
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", block.id);
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{count} blocks, {bytes} bytes in {seconds:.3} s");
    ensure!(failed == 0, "{failed} blocks failed");
    Ok(())
}

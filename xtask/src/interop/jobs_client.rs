//! Compares the blocks that `read_shuffle` reads with those that Spark's client has read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::jobs_cluster::{DumpedBlock, Event};
use crate::{build, process};

const PROGRAM: &str = "read_shuffle";
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// What a job has printed about its shuffle.
#[derive(Debug, Default)]
pub(super) struct Dump {
    app_id: String,
    blocks: BTreeSet<DumpedBlock>,
    /// The ports of live executors by id.
    executors: BTreeMap<String, u16>,
    spark_service: Option<u16>,
}

impl Dump {
    pub(super) fn record(&mut self, event: Event) {
        match event {
            Event::App(id) => self.app_id = id,
            Event::Block(block) => {
                self.blocks.insert(block);
            }
            Event::Executor(id, port) => {
                self.executors.insert(id, port);
            }
            Event::SparkService(port) => self.spark_service = Some(port),
            _ => {}
        }
    }

    /// Reads the blocks of every executor from this service, from Spark's, and from the executor.
    pub(super) fn check(&self, label: &str, service: u16, old_protocol: bool) -> Result<()> {
        ensure!(!self.blocks.is_empty(), "Spark's client has read no block");
        let program = build_program()?;
        let spark_service = self.spark_service.context("there is no service of Spark")?;
        let exec_ids: BTreeSet<&String> = self.blocks.iter().map(|block| &block.exec_id).collect();
        for exec_id in exec_ids {
            let executor = self.executors.get(exec_id).context("an executor is not alive")?;
            let known = format!("127.0.0.1:{service}");
            for (server, port, options) in [
                ("shuffle-service", service, &[][..]),
                // Spark's service has not seen the executors.
                ("service of Spark", spark_service, &["--dirs-from", &known][..]),
                ("executor", *executor, &[][..]),
            ] {
                for target in ["200m", "0"] {
                    let settings = [
                        format!("spark.network.maxRemoteBlockSizeFetchToMem={target}"),
                        format!("spark.shuffle.useOldFetchProtocol={old_protocol}"),
                    ];
                    let read = self.read(&program, port, exec_id, options, &settings);
                    let read = read.with_context(|| format!("{server}, executor {exec_id}"))?;
                    let expected: BTreeSet<_> =
                        self.blocks.iter().filter(|block| block.exec_id == *exec_id).collect();
                    ensure!(
                        read.iter().collect::<BTreeSet<_>>() == expected,
                        "{server}, executor {exec_id}: read {read:?} instead of {expected:?}"
                    );
                    println!("{label}: {} equal blocks from {server}", read.len());
                }
            }
        }
        Ok(())
    }

    /// Returns the blocks that are not empty.
    fn read(
        &self,
        program: &PathBuf,
        port: u16,
        exec_id: &str,
        options: &[&str],
        settings: &[String],
    ) -> Result<BTreeSet<DumpedBlock>> {
        let (shuffle, maps, reduces) = self.ids(exec_id)?;
        let mut command = Command::new(program);
        command.args([&format!("127.0.0.1:{port}"), &self.app_id, exec_id]);
        command.args([shuffle, maps, reduces]).args(options);
        settings.iter().for_each(|setting| {
            command.args(["--conf", setting]);
        });
        let mut blocks = BTreeSet::new();
        for line in process::output(PROGRAM, &mut command, READ_TIMEOUT)? {
            let words: Vec<_> = line.split(' ').collect();
            if let ["BLOCK", block_id, len, digest] = words[..]
                && len != "0"
            {
                blocks.insert(DumpedBlock {
                    exec_id: exec_id.to_owned(),
                    block_id: block_id.to_owned(),
                    len: len.parse()?,
                    digest: digest.to_owned(),
                });
            }
        }
        Ok(blocks)
    }

    /// Returns the shuffle, the maps and the reduces of an executor's blocks.
    fn ids(&self, exec_id: &str) -> Result<(String, String, String)> {
        let (mut shuffles, mut maps, mut reduces) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for block in self.blocks.iter().filter(|block| block.exec_id == exec_id) {
            let [_, shuffle, map, reduce] = block.block_id.split('_').collect::<Vec<_>>()[..]
            else {
                anyhow::bail!("{} is no shuffle block", block.block_id);
            };
            shuffles.insert(shuffle);
            maps.insert(map);
            reduces.insert(reduce);
        }
        let join = |ids: BTreeSet<&str>| ids.into_iter().collect::<Vec<_>>().join(",");
        Ok((join(shuffles), join(maps), join(reduces)))
    }
}

/// Builds the example in release mode; returns its path.
fn build_program() -> Result<PathBuf> {
    let words = ["--package", "examples", "--features", "shuffle", "--example", PROGRAM];
    build::program(".", PROGRAM, &words)
}

//! Local directories of executors, and shuffle files in Spark's layout.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use bench_protocol::ShuffleJob;
use network_shuffle::protocol::ExecutorShuffleInfo;

const MANAGER: &str = "org.apache.spark.shuffle.sort.SortShuffleManager";
/// The defaults of `spark.diskStore.subDirectories` and of a host with two disks.
const SUB_DIRS: usize = 64;
const LOCAL_DIRS: usize = 2;

/// Each block is a part of this repeated sequence of bytes, whose start depends on its ids.
const PERIOD: usize = 251;

/// The directory below which executors have their local directories.
pub(crate) struct Files {
    root: PathBuf,
}

impl Files {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Returns the registration of the executor that wrote the shuffles.
    pub(crate) fn writer(&self) -> ExecutorShuffleInfo {
        self.info((0..LOCAL_DIRS).map(|disk| self.local_dir(disk)))
    }

    /// Returns the registration of an executor without blocks.
    pub(crate) fn executor(&self, index: usize) -> ExecutorShuffleInfo {
        self.info([self.executor_dir(index)])
    }

    /// Writes the data and index files of a shuffle; returns the number of its blocks.
    pub(crate) fn write(&self, job: &ShuffleJob) -> anyhow::Result<u64> {
        for map in 0..job.maps {
            let name = format!("shuffle_{}_{map}_0", job.bytes);
            let offsets = (0..=job.reducers).map(|reduce| (reduce * job.bytes) as u64);
            let index: Vec<u8> = offsets.flat_map(u64::to_be_bytes).collect();
            fs::write(self.create_parent(&format!("{name}.index"))?, index)?;
            let mut data =
                BufWriter::new(File::create(self.create_parent(&format!("{name}.data"))?)?);
            for reduce in 0..job.reducers {
                data.write_all(Content::new(job.bytes).of(map, reduce))?;
            }
            // On the disk now, so that the disk is idle while blocks are read from the page cache.
            data.into_inner()?.sync_data()?;
        }
        Ok((job.maps * job.reducers) as u64)
    }

    /// Creates the local directories of `count` executors.
    pub(crate) fn create_executors(&self, count: usize) -> anyhow::Result<u64> {
        for index in 0..count {
            let directory = self.executor_dir(index);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        }
        Ok(count as u64)
    }

    fn info(&self, dirs: impl IntoIterator<Item = PathBuf>) -> ExecutorShuffleInfo {
        let dirs = dirs.into_iter().map(|dir| dir.to_string_lossy().into_owned());
        ExecutorShuffleInfo::new(dirs, SUB_DIRS as i32, MANAGER)
    }

    fn local_dir(&self, disk: usize) -> PathBuf {
        self.root.join(format!("blockmgr-{disk}"))
    }

    /// Returns a path whose names are as long as those of Spark, which contain UUIDs.
    fn executor_dir(&self, index: usize) -> PathBuf {
        self.root
            .join("spark-00000000-0000-4000-8000-000000000000")
            .join(format!("blockmgr-00000000-0000-4000-8000-{index:012}"))
    }

    /// Returns the path of a file, as Spark's `ExecutorDiskUtils.getFilePath`.
    fn create_parent(&self, name: &str) -> anyhow::Result<PathBuf> {
        let hash =
            name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let hash = hash.unsigned_abs() as usize;
        let sub_dir = format!("{:02x}", hash / LOCAL_DIRS % SUB_DIRS);
        let directory = self.local_dir(hash % LOCAL_DIRS).join(sub_dir);
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        Ok(directory.join(name))
    }
}

/// The content of all blocks of one length.
pub(crate) struct Content {
    bytes: usize,
    pattern: Vec<u8>,
}

impl Content {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, pattern: (0..bytes + PERIOD).map(|i| (i % PERIOD) as u8).collect() }
    }

    /// Returns the content of a block.
    pub(crate) fn of(&self, map: usize, reduce: usize) -> &[u8] {
        let start = (map * 31 + reduce) % PERIOD;
        &self.pattern[start..start + self.bytes]
    }

    /// Checks the content of a received block.
    pub(crate) fn check(&self, map: usize, reduce: usize, block: &[u8]) -> anyhow::Result<()> {
        ensure!(
            block == self.of(map, reduce),
            "the block of map {map} and reduce {reduce} differs"
        );
        Ok(())
    }
}

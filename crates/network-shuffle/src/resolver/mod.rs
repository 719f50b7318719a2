//! [`BlockResolver`]: finds the files of blocks on the disk.

mod block_path;
mod blocking;
mod cleaner;
mod diagnose;
mod index_cache;
mod index_file;
mod paths;

use std::sync::Arc;

use bytes::Bytes;
use network_common::ManagedBuffer;

use self::block_path::BlockPath;
use self::blocking::run_blocking;
pub(crate) use self::cleaner::{DirectoryCleaner, KeptFiles};
pub(crate) use self::diagnose::CorruptBlock;
use self::index_cache::IndexCache;
use self::index_file::invalid_registration;
use self::paths::{file_path, is_plain_name, verified_dir};
use crate::conf::ShuffleServiceConf;
use crate::metrics::ServiceMetrics;
use crate::protocol::{BlockId, CorruptionCause, ExecutorShuffleInfo, StringList};
use crate::registry::{ExecutorRegistry, RegisteredExecutor};
use crate::request_error::RequestError;

/// The text of Spark's `NoOpMergedShuffleFileManager`, which the standalone service uses.
pub(crate) const NO_MERGE: &str = "Cannot handle shuffle block merge";

/// Finds the bytes of blocks in the files of executors.
///
/// Corresponds to Spark's `ExternalShuffleBlockResolver`. Disk I/O runs on blocking threads; a
/// block whose index is in the cache needs none.
pub(crate) struct BlockResolver {
    registry: Arc<ExecutorRegistry>,
    indexes: IndexCache,
    verify_paths: bool,
}

impl BlockResolver {
    pub(crate) fn new(
        conf: &ShuffleServiceConf,
        registry: Arc<ExecutorRegistry>,
        metrics: Arc<ServiceMetrics>,
    ) -> Self {
        let verify_paths = conf.verify_block_paths();
        let indexes = IndexCache::new(conf.index_cache_size(), verify_paths, metrics);
        Self { registry, indexes, verify_paths }
    }

    /// Returns the content of a block; `None` if it is a cached partition that does not exist.
    pub(crate) async fn block_data(
        &self,
        app_id: &str,
        exec_id: &str,
        block: BlockId,
    ) -> Result<Option<ManagedBuffer>, RequestError> {
        let executor = self.registry.executor(app_id, exec_id)?;
        let (shuffle_id, map_id, reduce_ids) = match block {
            BlockId::Shuffle { shuffle_id, map_id, reduce_id } => {
                (shuffle_id, map_id, reduce_id..reduce_id.saturating_add(1))
            }
            BlockId::ShuffleBatch { shuffle_id, map_id, start_reduce_id, end_reduce_id } => {
                (shuffle_id, map_id, start_reduce_id..end_reduce_id)
            }
            BlockId::Rdd { .. } => return self.rdd_block(executor, block).await,
            BlockId::ShuffleChunk { .. } | BlockId::ShufflePush { .. } => {
                return Err(RequestError::unsupported(NO_MERGE));
            }
        };
        let index = self.indexes.get(&executor, shuffle_id, map_id).await?;
        let range = if index.is_loaded() {
            index.range(reduce_ids)?
        } else {
            let index = Arc::clone(&index);
            run_blocking(move || index.range(reduce_ids)).await?
        };
        match &index.data {
            _ if range.is_empty() => Ok(Some(Bytes::new().into())),
            Some(data) => Ok(Some(data.buffer(range))),
            None => Err(RequestError::runtime(format!("the data file of {block} does not exist"))),
        }
    }

    /// Deletes files of an executor; returns how many existed.
    ///
    /// A name that could lead to another directory is skipped, as in Spark 4.3.
    pub(crate) async fn remove_blocks(
        &self,
        executor: Arc<RegisteredExecutor>,
        names: StringList,
    ) -> Result<i32, RequestError> {
        let remove_all = move || {
            let removed = names.iter().filter(|name| {
                is_plain_name(name) && remove_file(&executor.info, name).unwrap_or_default()
            });
            Ok(i32::try_from(removed.count()).unwrap_or(i32::MAX))
        };
        run_blocking(remove_all).await
    }

    /// Returns why a block is corrupt.
    pub(crate) async fn diagnose(
        &self,
        executor: Option<Arc<RegisteredExecutor>>,
        block: CorruptBlock,
    ) -> CorruptionCause {
        let Some(executor) = executor else { return CorruptionCause::UnknownIssue };
        let verify_paths = self.verify_paths;
        let diagnose = move || Ok(diagnose::diagnose(&executor.info, &block, verify_paths));
        run_blocking(diagnose).await.unwrap_or(CorruptionCause::UnknownIssue)
    }

    /// Returns the bytes of the index cache.
    pub(crate) fn index_cache_bytes(&self) -> u64 {
        self.indexes.bytes()
    }

    async fn rdd_block(
        &self,
        executor: Arc<RegisteredExecutor>,
        block: BlockId,
    ) -> Result<Option<ManagedBuffer>, RequestError> {
        let verify_paths = self.verify_paths;
        let find = move || {
            let info = &executor.info;
            let path = file_path(info, &block.to_string()).ok_or_else(invalid_registration)?;
            let opened = BlockPath::new(info, &path, verify_paths)
                .and_then(|path| Ok((path.open()?.metadata()?.len(), path)));
            match opened {
                Ok((len, path)) => Ok(Some(path.buffer(0..len))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(RequestError::runtime(format!("{block}: {error}"))),
            }
        };
        run_blocking(find).await
    }
}

/// Deletes a file of an executor; returns whether it existed.
fn remove_file(info: &ExecutorShuffleInfo, name: &str) -> std::io::Result<bool> {
    let Some(path) = file_path(info, name) else { return Ok(false) };
    let removed = verified_dir(info, &path).and_then(|dir| std::fs::remove_file(dir.join(name)));
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "a block cannot be deleted");
            Err(error)
        }
    }
}

//! [`BlockResolver`]: finds the files of blocks on the disk.

mod index_cache;
mod index_file;
mod paths;

use std::sync::Arc;

use bytes::Bytes;
use network_common::ManagedBuffer;

use self::index_cache::IndexCache;
use self::index_file::{invalid_registration, open_file};
use self::paths::{file_path, verified_path};
use crate::conf::ShuffleServiceConf;
use crate::metrics::ServiceMetrics;
use crate::protocol::BlockId;
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
            Some(data) => Ok(Some(ManagedBuffer::file(&**data, range))),
            None => Err(RequestError::runtime(format!("the data file of {block} does not exist"))),
        }
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
            let verified = if verify_paths { verified_path(info, &path) } else { Ok(path) };
            let opened = verified.and_then(|path| Ok((open_file(&path)?.metadata()?.len(), path)));
            match opened {
                Ok((len, path)) => Ok(Some(ManagedBuffer::file(path, 0..len))),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(RequestError::runtime(format!("{block}: {error}"))),
            }
        };
        run_blocking(find).await
    }
}

/// Runs disk I/O on a blocking thread of the runtime.
async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RequestError::runtime(format!("disk access failed: {error}"))),
    }
}

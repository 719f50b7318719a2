//! [`IndexCache`], the index files in memory.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::blocking::run_blocking;
use super::index_file::ShuffleIndex;
use crate::metrics::{ServiceMetrics, add};
use crate::registry::RegisteredExecutor;
use crate::request_error::RequestError;

/// Estimated bytes of an entry beside the index: key, list links, reference counts.
const ENTRY_LEN: u64 = 176;

/// One map output of one registration of an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct IndexKey {
    registration: u64,
    shuffle_id: i32,
    map_id: i64,
}

#[derive(Clone)]
struct IndexWeighter;

impl Weighter<IndexKey, Arc<ShuffleIndex>> for IndexWeighter {
    fn weight(&self, _: &IndexKey, index: &Arc<ShuffleIndex>) -> u64 {
        ENTRY_LEN + index.cached_len().unwrap_or_default()
    }
}

/// The index files that were read, bounded in bytes with their keys (SPARK-33710).
///
/// As in Spark, an index file is assumed not to change. An executor that registers again has new
/// entries.
pub(super) struct IndexCache {
    indexes: Cache<IndexKey, Arc<ShuffleIndex>, IndexWeighter>,
    /// A longer index file is not kept.
    max_len: u64,
    verify_paths: bool,
    metrics: Arc<ServiceMetrics>,
}

impl IndexCache {
    pub(super) fn new(max_bytes: u64, verify_paths: bool, metrics: Arc<ServiceMetrics>) -> Self {
        // An index of 1000 reduce ids.
        let estimated_items = usize::try_from(max_bytes / (8 << 10)).unwrap_or(usize::MAX);
        let indexes = Cache::with_weighter(estimated_items.max(1), max_bytes, IndexWeighter);
        // quick_cache rejects what does not fit into one of its shards.
        let max_len = (indexes.shard_capacity() / 4).saturating_sub(ENTRY_LEN);
        Self { indexes, max_len, verify_paths, metrics }
    }

    /// Returns an index from the cache, or reads it on a blocking thread.
    ///
    /// Concurrent requests for the same index read it once.
    pub(super) async fn get(
        &self,
        executor: &Arc<RegisteredExecutor>,
        shuffle_id: i32,
        map_id: i64,
    ) -> Result<Arc<ShuffleIndex>, RequestError> {
        let key = IndexKey { registration: executor.registration, shuffle_id, map_id };
        let placeholder = match self.indexes.get_value_or_guard_async(&key).await {
            Ok(index) => return Ok(index),
            Err(placeholder) => placeholder,
        };
        add(&self.metrics.index_reads, 1);
        let (executor, verify_paths, max_len) =
            (Arc::clone(executor), self.verify_paths, self.max_len);
        let open =
            move || ShuffleIndex::open(&executor.info, shuffle_id, map_id, verify_paths, max_len);
        let index = Arc::new(run_blocking(open).await?);
        if index.cached_len().is_some() {
            // Fails if the entry was removed meanwhile; the index is then read again.
            let _ = placeholder.insert(Arc::clone(&index));
        }
        Ok(index)
    }

    /// Returns the number of bytes of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.indexes.weight()
    }
}

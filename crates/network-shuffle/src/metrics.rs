//! [`ServiceMetrics`], the counters of the service.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $name:literal,)*) => {
        /// The counters of a running service; reading them is cheap.
        #[derive(Debug, Default)]
        pub(crate) struct ServiceMetrics {
            $(pub(crate) $field: AtomicU64,)*
        }

        /// The values of the service's counters; see `ShuffleService::metrics`.
        ///
        /// ```
        /// use network_shuffle::ServiceMetricsSnapshot;
        ///
        /// assert_eq!(ServiceMetricsSnapshot::default().blocks, 0);
        /// ```
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ServiceMetricsSnapshot {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl ServiceMetrics {
            /// Returns the current values, which are not read at the same instant.
            pub(crate) fn snapshot(&self) -> ServiceMetricsSnapshot {
                ServiceMetricsSnapshot { $($field: self.$field.load(Ordering::Relaxed),)* }
            }
        }

        impl ServiceMetricsSnapshot {
            /// Returns the values with their names, Spark's where Spark has them.
            #[must_use]
            pub fn named_values(&self) -> Vec<(&'static str, u64)> {
                vec![$(($name, self.$field),)*]
            }
        }
    };
}

counters! {
    /// The number of blocks that were served; a batch counts each of its blocks.
    blocks: "blockTransferRate",
    /// The number of chunks that were served.
    chunks: "blockTransferMessageRate",
    /// The number of bytes of these chunks.
    bytes: "blockTransferRateBytes",
    /// The number of chunk requests that failed.
    failed_chunks: "failedChunks",
    /// The number of `OpenBlocks` requests: the fetch protocol before Spark 3.0.
    open_blocks_requests: "openBlocksRequests",
    /// The number of `FetchShuffleBlocks` requests.
    fetch_requests: "fetchShuffleBlocksRequests",
    /// The number of chunks that were requested as streams, for fetches to disk.
    stream_requests: "streamRequests",
    /// The number of `RegisterExecutor` requests.
    register_requests: "registerExecutorRequests",
    /// The number of `GetLocalDirsForExecutors` requests.
    local_dirs_requests: "getLocalDirsRequests",
    /// The number of `RemoveBlocks` requests.
    remove_requests: "removeBlocksRequests",
    /// The number of files that these requests deleted.
    removed_blocks: "removedBlocks",
    /// The number of `DiagnoseCorruption` requests.
    diagnose_requests: "diagnoseCorruptionRequests",
    /// The number of requests that failed, without chunks.
    failed_requests: "failedRequests",
    /// The number of registrations that could not be stored.
    unstored_registrations: "unstoredRegistrations",
    /// The number of open streams.
    open_streams: "openStreams",
    /// The number of bytes of the block lists of open streams.
    open_streams_bytes: "openStreamsBytes",
    /// The number of registered executors.
    registered_executors: "registeredExecutorsSize",
    /// The number of requests that wait for the disk; chunks do not count.
    pending_requests: "pendingRequests",
    /// The number of index files that were read.
    index_reads: "indexReads",
    /// The number of bytes of the index cache, with keys.
    index_cache_bytes: "indexCacheBytes",
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Subtracts from a gauge.
pub(crate) fn subtract(gauge: &AtomicU64, count: u64) {
    gauge.fetch_sub(count, Ordering::Relaxed);
}

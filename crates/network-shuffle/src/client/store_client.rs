//! [`ExternalBlockStoreClient`], the client of shuffle services and executors.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use network_common::{PeerAddress, RetryPolicy, TransportContext};

use super::block_fetch::BlockFetch;
use super::block_stream::ShuffleBlockStream;
use super::conf::BlockClientConf;
use super::error::BlockError;
use super::location::BlockLocation;
use super::open_request::in_chunk_order;
use super::store::BlockStore;
use super::target::FetchTarget;
use crate::checksum::Checksum;
use crate::protocol::{
    BlockId, BlockTransferMessage, CorruptionCause, ExecutorShuffleInfo, StringList,
};

/// The wait between two attempts to register (Spark's `BlockManager`).
const REGISTRATION_WAIT: Duration = Duration::from_secs(5);
const REGISTER: &str = "registering an executor";
const REMOVE: &str = "removing blocks";
const LOCAL_DIRS: &str = "getting the local directories of executors";
const DIAGNOSE: &str = "diagnosing a corrupt block";

/// Returns the checksum of a block's bytes; `None` if the algorithm is not known.
///
/// The algorithm is that of the writer, `spark.shuffle.checksum.algorithm`: `ADLER32` (the default
/// of Spark), `CRC32` or `CRC32C`.
///
/// ```
/// use network_shuffle::client::block_checksum;
///
/// assert_eq!(block_checksum("ADLER32", b"Wikipedia"), Some(0x11e6_0398));
/// assert_eq!(block_checksum("MD5", b"Wikipedia"), None);
/// ```
#[must_use]
pub fn block_checksum(algorithm: &str, bytes: &[u8]) -> Option<u32> {
    let mut checksum = Checksum::new(algorithm)?;
    checksum.update(bytes);
    Some(checksum.finish())
}

/// Fetches blocks from shuffle services and executors (Spark's `ExternalBlockStoreClient`).
///
/// An executor's own port serves the same messages, except registrations and removals. Cloning is
/// cheap. Connections are pooled by address; [`close`](Self::close) closes them.
///
/// ```
/// use futures::StreamExt;
/// use network_common::{BoxError, NoOpRpcHandler, TransportConf, TransportContext};
/// use network_shuffle::client::{
///     BlockClientConf, BlockLocation, ExternalBlockStoreClient, FetchTarget,
/// };
/// use network_shuffle::protocol::{BlockId, ExecutorShuffleInfo};
/// # use network_shuffle::{ShuffleService, ShuffleServiceConf};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let conf = ShuffleServiceConf::from_settings([
/// #     ("spark.shuffle.service.host", "127.0.0.1"),
/// #     ("spark.shuffle.service.port", "0"),
/// #     ("spark.shuffle.service.db.enabled", "false"),
/// # ])?;
/// # let service = ShuffleService::start(&conf, TransportConf::new("shuffle"), None).await?;
/// # let service_address = service.local_addr();
/// # let directory = tempfile::tempdir()?;
/// # let local_dir = directory.path().to_str().unwrap();
/// # std::fs::create_dir(directory.path().join("00"))?;
/// # let file = |name| directory.path().join("00").join(name);
/// # std::fs::write(file("shuffle_0_7_0.index"), [0_u64, 4].map(u64::to_be_bytes).concat())?;
/// # std::fs::write(file("shuffle_0_7_0.data"), "rows")?;
/// let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
/// let client = ExternalBlockStoreClient::new(context, "app-1", BlockClientConf::default());
///
/// let location = BlockLocation::new(service_address, "exec-1");
/// let manager = "org.apache.spark.shuffle.sort.SortShuffleManager";
/// client.register(&location, ExecutorShuffleInfo::new([local_dir], 1, manager)).await?;
///
/// let block = BlockId::Shuffle { shuffle_id: 0, map_id: 7, reduce_id: 0 };
/// let mut blocks = client.fetch_blocks(&location, [block], FetchTarget::Memory);
/// while let Some((id, buffer)) = blocks.next().await {
///     assert_eq!((id, buffer?.read().await?), (block, "rows".into()));
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ExternalBlockStoreClient {
    store: Arc<BlockStore>,
}

impl ExternalBlockStoreClient {
    /// Creates a client of the application `app_id`.
    ///
    /// Connections have the settings and the security of `context`, of the module `shuffle`; its
    /// handler serves nothing. If peers must authenticate, the context must have been made with
    /// `with_auth` and the same application id. Idle connections are closed after
    /// `spark.shuffle.io.connectionTimeout`.
    #[must_use]
    pub fn new(
        context: TransportContext,
        app_id: impl Into<String>,
        conf: BlockClientConf,
    ) -> Self {
        for key in conf.unknown_keys() {
            tracing::warn!("{key}");
        }
        Self { store: Arc::new(BlockStore::new(context, app_id.into(), conf)) }
    }

    /// Registers an executor with the shuffle service at its location.
    ///
    /// Corresponds to `ExternalBlockStoreClient.registerWithShuffleServer` and the attempts around
    /// it in `BlockManager`: a failed attempt is repeated 5 s later, and each attempt has a
    /// connection of its own.
    ///
    /// # Errors
    /// The error of the last of `spark.shuffle.registration.maxAttempts` attempts.
    ///
    /// # Cancel safety
    /// If the future is dropped, the executor may be registered.
    pub async fn register(
        &self,
        location: &BlockLocation,
        info: ExecutorShuffleInfo,
    ) -> Result<(), BlockError> {
        let (store, address) = (&self.store, &location.address);
        let (app_id, exec_id) = (store.app_id.clone(), location.exec_id.clone());
        let message = BlockTransferMessage::RegisterExecutor { app_id, exec_id, info }.encode();
        let policy = RetryPolicy::new()
            .attempts(store.conf.registration_max_attempts())
            .first_wait(REGISTRATION_WAIT)
            .factor(1.0)
            .jitter(false);
        policy.run(|_| self.register_once(address, message.clone()), |_| !store.is_closed()).await
    }

    async fn register_once(
        &self,
        address: &PeerAddress,
        message: impl Into<Bytes>,
    ) -> Result<(), BlockError> {
        let store = &self.store;
        let client = store.factory.create_unmanaged_client(address.clone()).await;
        let client = client.map_err(BlockError::transport(REGISTER, address))?;
        let timeout = store.conf.registration_timeout();
        let answer = tokio::time::timeout(timeout, client.send_rpc(message)).await;
        let answer = answer.map_err(|_| BlockError::Timeout {
            operation: REGISTER,
            address: address.clone(),
            timeout,
            setting: "spark.shuffle.registration.timeout",
        })?;
        answer.map(drop).map_err(BlockError::transport(REGISTER, address))
    }

    /// Begins to fetch blocks of one location; each of them appears once in the stream.
    ///
    /// All blocks are fetched, also if the reader does not take them;
    /// [`fetch_shuffle`](Self::fetch_shuffle) limits what is in flight. After an I/O error the
    /// missing blocks are requested again, as in Spark's `RetryingBlockTransferor`: at most
    /// `spark.shuffle.io.maxRetries` times, `spark.shuffle.io.retryWait` apart. A failure that the
    /// peer reports is not repeated.
    ///
    /// Blocks of one shuffle are requested with `FetchShuffleBlocks`, merged chunks with
    /// `FetchShuffleBlockChunks`, and others, or with `spark.shuffle.useOldFetchProtocol` all, with
    /// `OpenBlocks`. The blocks of one map are served together, so the order of the stream may
    /// differ from that of `blocks`. If a block fails, all blocks behind it fail, too.
    ///
    /// # Panics
    /// If it is not called in a tokio runtime.
    pub fn fetch_blocks(
        &self,
        location: &BlockLocation,
        blocks: impl IntoIterator<Item = BlockId>,
        target: FetchTarget,
    ) -> BlockFetch {
        let mut blocks: Vec<BlockId> = blocks.into_iter().collect();
        if !self.store.conf.use_old_fetch_protocol() {
            blocks = in_chunk_order(blocks, |block| *block);
        }
        BlockFetch::start(Arc::clone(&self.store), location.clone(), blocks, target, None)
    }

    /// Reads blocks of many locations as one stream, within the limits of the settings.
    ///
    /// Each location comes with its blocks and their expected sizes in bytes, which the driver of
    /// the application knows. [`ShuffleBlockStream`] describes the limits.
    ///
    /// # Panics
    /// If it is polled outside of a tokio runtime.
    pub fn fetch_shuffle(
        &self,
        blocks: impl IntoIterator<Item = (BlockLocation, Vec<(BlockId, u64)>)>,
    ) -> ShuffleBlockStream {
        ShuffleBlockStream::new(Arc::clone(&self.store), blocks)
    }

    /// Deletes blocks of an executor at a shuffle service; returns how many it has deleted.
    ///
    /// Spark's client reports 0 instead of an error.
    ///
    /// # Errors
    /// The service cannot be reached, or reports a failure.
    ///
    /// # Cancel safety
    /// If the future is dropped, the blocks may be deleted.
    pub async fn remove_blocks(
        &self,
        location: &BlockLocation,
        blocks: impl IntoIterator<Item = BlockId>,
    ) -> Result<u32, BlockError> {
        let address = &location.address;
        let message = BlockTransferMessage::RemoveBlocks {
            app_id: self.store.app_id.clone(),
            exec_id: location.exec_id.clone(),
            block_ids: blocks.into_iter().map(|block| block.to_string()).collect::<StringList>(),
        };
        match self.store.ask(REMOVE, address, &message).await? {
            BlockTransferMessage::BlocksRemoved { count } => {
                let negative = |_| BlockError::unexpected(REMOVE, address, "a negative number");
                u32::try_from(count).map_err(negative)
            }
            _ => Err(BlockError::unexpected(REMOVE, address, "the answer is no BlocksRemoved")),
        }
    }

    /// Returns the local directories of executors by executor id.
    ///
    /// A reader on the same host reads the files itself. Corresponds to Spark's
    /// `BlockStoreClient.getHostLocalDirs`. An executor's own port knows only that executor.
    ///
    /// # Errors
    /// The peer cannot be reached, or does not know one of the executors.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn host_local_dirs<S: AsRef<str>>(
        &self,
        address: impl Into<PeerAddress>,
        exec_ids: impl IntoIterator<Item = S>,
    ) -> Result<HashMap<String, Vec<String>>, BlockError> {
        let address = &address.into();
        let message = BlockTransferMessage::GetLocalDirsForExecutors {
            app_id: self.store.app_id.clone(),
            exec_ids: exec_ids.into_iter().collect::<StringList>(),
        };
        match self.store.ask(LOCAL_DIRS, address, &message).await? {
            BlockTransferMessage::LocalDirsForExecutors { local_dirs } => {
                Ok(local_dirs.into_iter().collect())
            }
            _ => Err(BlockError::unexpected(
                LOCAL_DIRS,
                address,
                "the answer is no LocalDirsForExecutors",
            )),
        }
    }

    /// Asks the server of a corrupt block for the cause.
    ///
    /// `checksum` is the [`block_checksum`] of the received bytes. As in Spark, every failure and a
    /// block that is not a shuffle block give [`CorruptionCause::UnknownIssue`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn diagnose_corruption(
        &self,
        location: &BlockLocation,
        block: BlockId,
        checksum: u32,
        algorithm: &str,
    ) -> CorruptionCause {
        let BlockId::Shuffle { shuffle_id, map_id, reduce_id } = block else {
            return CorruptionCause::UnknownIssue;
        };
        let address = &location.address;
        let message = BlockTransferMessage::DiagnoseCorruption {
            app_id: self.store.app_id.clone(),
            exec_id: location.exec_id.clone(),
            shuffle_id,
            map_id,
            reduce_id,
            checksum: i64::from(checksum),
            algorithm: algorithm.to_owned(),
        };
        match self.within_timeout(self.store.ask(DIAGNOSE, address, &message)).await {
            Some(Ok(BlockTransferMessage::CorruptionCause { cause })) => cause,
            answer => {
                let error = answer.and_then(Result::err).map(|error| format!("{error:#}"));
                tracing::warn!(%location, %block, error, "a corrupt block was not diagnosed");
                CorruptionCause::UnknownIssue
            }
        }
    }

    /// Closes the pooled connections. Fetches that are active fail, and are not repeated.
    pub fn close(&self) {
        self.store.close();
    }

    async fn within_timeout<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.store.request_timeout {
            Some(timeout) => tokio::time::timeout(timeout, work).await.ok(),
            None => Some(work.await),
        }
    }
}

impl fmt::Debug for ExternalBlockStoreClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExternalBlockStoreClient")
            .field("app_id", &self.store.app_id)
            .field("conf", &self.store.conf)
            .finish_non_exhaustive()
    }
}

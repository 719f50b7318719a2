//! [`BlockFetch`], the stream of the blocks of one request.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures::Stream;
use network_common::ManagedBuffer;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::error::BlockError;
use super::location::BlockLocation;
use super::read_ahead::ReadAhead;
use super::retrying::RetryingBlockTransferor;
use super::store::BlockStore;
use super::target::FetchTarget;
use crate::protocol::BlockId;

/// The blocks that are fetched from one location, as a [`Stream`]; each block appears once.
///
/// [`ExternalBlockStoreClient::fetch_blocks`](super::ExternalBlockStoreClient::fetch_blocks) begins
/// it. The blocks are fetched by a task in the background, and wait in memory or in files until
/// they are taken out; [`fetch_shuffle`](super::ExternalBlockStoreClient::fetch_shuffle) limits
/// their number and bytes. Dropping the stream ends the task: a connection attempt or an RPC is
/// cancelled, files are deleted, and chunks that are on their way are received and discarded.
///
/// ```no_run
/// use futures::StreamExt;
/// use network_shuffle::client::BlockFetch;
///
/// async fn count_bytes(mut blocks: BlockFetch) -> Result<u64, network_common::BoxError> {
///     let mut bytes = 0;
///     while let Some((_, block)) = blocks.next().await {
///         bytes += block?.len();
///     }
///     Ok(bytes)
/// }
/// ```
#[must_use = "the fetch is cancelled when the stream is dropped"]
pub struct BlockFetch {
    /// The blocks without a result, in the order of the results.
    missing: VecDeque<BlockId>,
    results: mpsc::UnboundedReceiver<Result<ManagedBuffer, BlockError>>,
    read_ahead: Arc<ReadAhead>,
    /// The error of all missing blocks.
    error: Option<BlockError>,
    _task: AbortOnDropHandle<()>,
}

impl BlockFetch {
    /// Starts the task that fetches `blocks`, which are in the order of their chunks.
    ///
    /// The task waits for the reader if it receives much more than `expected_bytes`.
    pub(super) fn start(
        store: Arc<BlockStore>,
        location: BlockLocation,
        blocks: Vec<BlockId>,
        target: FetchTarget,
        expected_bytes: Option<u64>,
    ) -> Self {
        let read_ahead = Arc::new(ReadAhead::new(expected_bytes));
        let missing = VecDeque::from(blocks);
        let (sender, results) = mpsc::unbounded_channel();
        let transferor = RetryingBlockTransferor {
            store,
            location,
            missing: missing.clone(),
            target,
            read_ahead: Arc::clone(&read_ahead),
            results: sender,
        };
        let task = AbortOnDropHandle::new(tokio::spawn(transferor.run()));
        Self { missing, results, read_ahead, error: None, _task: task }
    }

    /// Returns the number of blocks that have not been taken out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.missing.len()
    }

    /// Returns whether all blocks have been taken out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty()
    }
}

impl Stream for BlockFetch {
    type Item = (BlockId, Result<ManagedBuffer, BlockError>);

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.missing.is_empty() {
            return Poll::Ready(None);
        }
        let result = match &self.error {
            Some(error) => Err(error.clone()),
            // The task sends a result or an error for each block, unless its runtime ended it.
            None => {
                ready!(self.results.poll_recv(context)).unwrap_or(Err(BlockError::RuntimeStopped))
            }
        };
        match &result {
            Ok(block) => self.read_ahead.on_taken(block.len()),
            Err(error) => {
                self.error.get_or_insert_with(|| error.clone());
            }
        }
        Poll::Ready(self.missing.pop_front().map(|block| (block, result)))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len(), Some(self.len()))
    }
}

impl fmt::Debug for BlockFetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockFetch")
            .field("missing", &self.missing.len())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

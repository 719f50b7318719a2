//! [`Requests`]: the requests that do not open a stream.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::metrics::{ServiceMetrics, add};
use crate::protocol::{BlockTransferMessage, ExecutorShuffleInfo, StringList};
use crate::registry::ExecutorRegistry;
use crate::request_error::RequestError;
use crate::resolver::{BlockResolver, CorruptBlock, NO_MERGE};

/// The executor id by which Spark asks for the directories of merged blocks.
const SHUFFLE_MERGER: &str = "shuffle-push-merger";

/// The response to a request, or the work that it needs.
pub(super) enum Response {
    Ready(Bytes),
    Later(BoxFuture<'static, Result<Bytes, RequestError>>),
}

impl From<BlockTransferMessage> for Response {
    fn from(message: BlockTransferMessage) -> Self {
        Self::Ready(message.encode())
    }
}

/// Registers executors, answers questions about them, and deletes their blocks.
pub(super) struct Requests {
    pub(super) registry: Arc<ExecutorRegistry>,
    pub(super) resolver: Arc<BlockResolver>,
    pub(super) metrics: Arc<ServiceMetrics>,
}

impl Requests {
    pub(super) fn register(
        self: &Arc<Self>,
        app_id: String,
        exec_id: String,
        info: ExecutorShuffleInfo,
    ) -> Response {
        let requests = Arc::clone(self);
        Response::Later(Box::pin(async move {
            requests.registry.register(app_id, exec_id, info).await?;
            Ok(Bytes::new())
        }))
    }

    /// Returns the directories of each executor; an unknown one fails the request.
    pub(super) fn local_dirs(
        &self,
        app_id: &str,
        exec_ids: &StringList,
    ) -> Result<Response, RequestError> {
        let dirs = |exec_id: &str| {
            if exec_id == SHUFFLE_MERGER {
                return Err(RequestError::unsupported(NO_MERGE));
            }
            let executor = self.registry.executor(app_id, exec_id)?;
            Ok((exec_id.to_owned(), executor.info.local_dirs.clone()))
        };
        // An id that is repeated a million times needs one entry, as in the map of Spark.
        let exec_ids: BTreeSet<_> = exec_ids.iter().collect();
        let local_dirs = exec_ids.iter().map(|exec_id| dirs(exec_id)).collect::<Result<_, _>>()?;
        Ok(BlockTransferMessage::LocalDirsForExecutors { local_dirs }.into())
    }

    /// Deletes files of an executor.
    pub(super) fn remove_blocks(
        self: &Arc<Self>,
        app_id: &str,
        exec_id: &str,
        block_ids: StringList,
    ) -> Result<Response, RequestError> {
        let executor = self.registry.executor(app_id, exec_id)?;
        let requests = Arc::clone(self);
        Ok(Response::Later(Box::pin(async move {
            let removed = requests.resolver.remove_blocks(executor, block_ids).await?;
            add(&requests.metrics.removed_blocks, u64::try_from(removed).unwrap_or_default());
            Ok(BlockTransferMessage::BlocksRemoved { count: removed }.encode())
        })))
    }

    /// Compares the checksums of the writer, of the disk and of the reader.
    pub(super) fn diagnose_corruption(
        self: &Arc<Self>,
        app_id: &str,
        exec_id: &str,
        block: CorruptBlock,
    ) -> Response {
        let executor = self.registry.executor(app_id, exec_id).ok();
        let requests = Arc::clone(self);
        Response::Later(Box::pin(async move {
            let cause = requests.resolver.diagnose(executor, block).await;
            tracing::warn!(%cause, "an executor received a corrupt block");
            Ok(BlockTransferMessage::CorruptionCause { cause }.encode())
        }))
    }
}

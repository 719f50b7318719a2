//! [`Requests`]: the requests that do not open a stream.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::protocol::{BlockTransferMessage, ExecutorShuffleInfo, StringList};
use crate::registry::{ExecutorRegistry, check_registration};
use crate::request_error::RequestError;
use crate::resolver::NO_MERGE;

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

/// Registers executors, and answers questions about them.
pub(super) struct Requests {
    pub(super) registry: Arc<ExecutorRegistry>,
}

impl Requests {
    pub(super) fn register(
        &self,
        app_id: String,
        exec_id: String,
        info: ExecutorShuffleInfo,
    ) -> Result<Response, RequestError> {
        check_registration(&info)?;
        self.registry.register(&app_id, &exec_id, info)?;
        Ok(Response::Ready(Bytes::new()))
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
        let local_dirs = exec_ids.iter().map(|exec_id| dirs(&exec_id)).collect::<Result<_, _>>()?;
        Ok(BlockTransferMessage::LocalDirsForExecutors { local_dirs }.into())
    }
}

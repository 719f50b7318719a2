//! [`BlockStore`]: what the tasks of one client share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use network_common::{
    PeerAddress, RetryPolicy, TransportClient, TransportClientFactory, TransportContext,
    TransportError,
};

use super::conf::BlockClientConf;
use super::error::BlockError;
use super::open_request::OpenRequest;
use crate::protocol::{BlockId, BlockTransferMessage};

/// The connections, the application and the settings of a client.
pub(super) struct BlockStore {
    pub(super) factory: TransportClientFactory,
    pub(super) app_id: String,
    pub(super) conf: BlockClientConf,
    max_retries: u32,
    retry_wait: Duration,
    pub(super) request_timeout: Option<Duration>,
    is_closed: AtomicBool,
}

impl BlockStore {
    pub(super) fn new(context: TransportContext, app_id: String, conf: BlockClientConf) -> Self {
        let (max_retries, retry_wait) = (context.conf().max_retries(), context.conf().retry_wait());
        let request_timeout = context.conf().connection_timeout();
        let factory = context.close_idle_connections(true).create_client_factory();
        let is_closed = AtomicBool::new(false);
        Self { factory, app_id, conf, max_retries, retry_wait, request_timeout, is_closed }
    }

    /// Closes the pooled connections; nothing is repeated from now on.
    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.factory.close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Returns the policy of fetches: `spark.shuffle.io.maxRetries` more attempts.
    pub(super) fn retry_policy(&self) -> RetryPolicy {
        RetryPolicy::new()
            .attempts(self.max_retries.saturating_add(1))
            .first_wait(self.retry_wait)
            .max_wait(self.retry_wait)
            .factor(1.0)
            .jitter(false)
    }

    pub(super) fn open_request(
        &self,
        exec_id: &str,
        blocks: &[BlockId],
    ) -> Result<OpenRequest, BlockError> {
        OpenRequest::new(&self.app_id, exec_id, blocks, self.conf.use_old_fetch_protocol())
    }

    /// Returns a connection; with retries, fails at once if the last attempt has just failed.
    pub(super) async fn connect_to_fetch(
        &self,
        address: &PeerAddress,
    ) -> Result<TransportClient, TransportError> {
        if self.max_retries > 0 {
            self.factory.create_client_fast_fail(address.clone()).await
        } else {
            self.factory.create_client(address.clone()).await
        }
    }

    /// Sends a message over a pooled connection and returns the answer.
    pub(super) async fn ask(
        &self,
        operation: &'static str,
        address: &PeerAddress,
        message: &BlockTransferMessage,
    ) -> Result<BlockTransferMessage, BlockError> {
        let client = self.factory.create_client(address.clone()).await;
        let client = client.map_err(BlockError::transport(operation, address))?;
        let answer = client.send_rpc(message.encode()).await;
        let answer = answer.map_err(BlockError::transport(operation, address))?;
        BlockTransferMessage::decode(&answer)
            .map_err(|error| BlockError::unexpected(operation, address, error.to_string()))
    }
}

//! Repeats the fetch of blocks after I/O errors (Spark's `RetryingBlockTransferor`).

use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use network_common::{ErrorKind, ManagedBuffer, RetrySchedule, TransportError};
use tokio::sync::mpsc;

use super::error::{BlockError, FETCH};
use super::location::BlockLocation;
use super::one_for_one;
use super::read_ahead::ReadAhead;
use super::store::BlockStore;
use super::target::FetchTarget;
use crate::protocol::BlockId;

/// Fetches blocks of one location, and repeats the fetch of those that are missing.
pub(super) struct RetryingBlockTransferor {
    pub(super) store: Arc<BlockStore>,
    pub(super) location: BlockLocation,
    /// The blocks without a result, in the order of their chunks.
    pub(super) missing: VecDeque<BlockId>,
    pub(super) target: FetchTarget,
    pub(super) read_ahead: Arc<ReadAhead>,
    /// A buffer for each block, in order; an error is that of all the blocks behind.
    pub(super) results: mpsc::UnboundedSender<Result<ManagedBuffer, BlockError>>,
}

impl RetryingBlockTransferor {
    pub(super) async fn run(mut self) {
        let mut retries = Retries::new(&self.store);
        loop {
            let Err(error) = self.attempt(&mut retries).await else { return };
            let wait = if self.store.is_closed() { None } else { retries.next_wait(&error) };
            let Some(wait) = wait else {
                // Fails only if the reader was dropped.
                let _ = self.results.send(Err(error));
                return;
            };
            tracing::info!(
                location = %self.location,
                missing = self.missing.len(),
                ?wait,
                error = format!("{error:#}"),
                "fetching blocks is repeated"
            );
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&mut self, retries: &mut Retries) -> Result<(), BlockError> {
        let Self { store, location, missing, target, read_ahead, results } = self;
        let blocks = missing.make_contiguous();
        let request = store.open_request(&location.exec_id, blocks)?;
        let client = store.connect_to_fetch(&location.address).await;
        let client = client.map_err(BlockError::transport(FETCH, &location.address))?;
        let on_block = |block: ManagedBuffer| {
            retries.on_success();
            read_ahead.on_received(block.len());
            missing.pop_front();
            let _ = results.send(Ok(block));
        };
        let address = &location.address;
        one_for_one::fetch(&client, address, &request, target, read_ahead, on_block).await
    }
}

/// What an error means for a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Spark's client would report an `IOException`.
    Io,
    /// The peer did not complete the authentication in time.
    AuthTimeout,
    /// A repetition would fail, too.
    Permanent,
}

/// How often a fetch is repeated, and when.
struct Retries {
    schedule: RetrySchedule,
    repeats_auth_timeouts: bool,
    /// The schedule before the first of the last authentication timeouts, which do not count
    /// when another error or a success follows (SPARK-42784).
    before_auth_timeouts: Option<RetrySchedule>,
}

impl Retries {
    fn new(store: &BlockStore) -> Self {
        Self {
            schedule: store.retry_policy().start(),
            repeats_auth_timeouts: store.conf.sasl_enable_retries(),
            before_auth_timeouts: None,
        }
    }

    fn on_success(&mut self) {
        if let Some(schedule) = self.before_auth_timeouts.take() {
            self.schedule = schedule;
        }
    }

    /// Counts a failure; returns the wait before the next attempt if there is one.
    fn next_wait(&mut self, error: &BlockError) -> Option<Duration> {
        match classify(error) {
            Failure::Permanent => None,
            Failure::Io => {
                self.on_success();
                self.schedule.next_wait()
            }
            Failure::AuthTimeout if self.repeats_auth_timeouts => {
                self.before_auth_timeouts.get_or_insert_with(|| self.schedule.clone());
                self.schedule.next_wait()
            }
            Failure::AuthTimeout => None,
        }
    }
}

/// Returns what an error means for a fetch, as `RetryingBlockTransferor.shouldRetry`.
fn classify(error: &BlockError) -> Failure {
    match error {
        BlockError::Transport { source, .. } => classify_transport(source),
        BlockError::File { .. } => Failure::Io,
        _ => Failure::Permanent,
    }
}

fn classify_transport(error: &TransportError) -> Failure {
    match error.kind() {
        ErrorKind::Connect
        | ErrorKind::ConnectTimeout
        | ErrorKind::FastFail
        | ErrorKind::Closed
        | ErrorKind::Timeout
        // The budget of this process had no bytes left for the response.
        | ErrorKind::Limit
        | ErrorKind::Io => Failure::Io,
        ErrorKind::Bootstrap if error.is_timeout() => Failure::AuthTimeout,
        // The connection was lost during the authentication.
        ErrorKind::Bootstrap => error
            .source()
            .and_then(|cause| cause.downcast_ref::<TransportError>())
            .map_or(Failure::Permanent, classify_transport),
        _ => Failure::Permanent,
    }
}

//! [`PoolSlot`]: one connection of the pool, or the shared attempt to open it.

use std::future::Future;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::client::TransportClient;
use crate::error::{ErrorKind, TransportError};

type ConnectAttempt = Shared<BoxFuture<'static, Result<TransportClient, TransportError>>>;

/// Holds one connection of the pool, or the attempt to open it.
#[derive(Default)]
pub(super) struct PoolSlot {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    client: Option<TransportClient>,
    attempt: Option<ConnectAttempt>,
}

impl PoolSlot {
    /// Returns the connection if it is active, and restarts its idle timeout.
    pub(super) fn active_client(&self) -> Option<TransportClient> {
        let client = self.state.lock().client.clone()?;
        client.mark_used().then_some(client)
    }

    /// Returns the connection, after a call of `connect` or the attempt of another caller.
    ///
    /// The attempt runs on a task of its own, so it continues if its caller is dropped.
    pub(super) async fn connect<C, F>(&self, connect: C) -> Result<TransportClient, TransportError>
    where
        C: FnOnce() -> F,
        F: Future<Output = Result<TransportClient, TransportError>> + Send + 'static,
    {
        let attempt = {
            let mut state = self.state.lock();
            state.finish_attempt();
            if let Some(client) = state.client.clone().filter(TransportClient::mark_used) {
                return Ok(client);
            }
            match &state.attempt {
                Some(attempt) => attempt.clone(),
                None => {
                    let task = tokio::spawn(connect());
                    let attempt = async move {
                        task.await.unwrap_or_else(|error| {
                            let text =
                                "the connection attempt ended because its runtime was shut down";
                            Err(TransportError::new(ErrorKind::Closed, text).with_source(error))
                        })
                    };
                    state.attempt.insert(attempt.boxed().shared()).clone()
                }
            }
        };
        let result = attempt.clone().await;
        self.state.lock().finish_attempt();
        result
    }

    /// Returns whether there is an active connection or an attempt.
    pub(super) fn is_occupied(&self) -> bool {
        let state = self.state.lock();
        state.attempt.is_some() || state.client.as_ref().is_some_and(TransportClient::is_active)
    }

    /// Closes the connection. A running attempt is not cancelled.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.finish_attempt();
        if let Some(client) = state.client.take() {
            client.close();
        }
        state.attempt = None;
    }
}

impl SlotState {
    /// Stores the result of an attempt that has finished.
    fn finish_attempt(&mut self) {
        // Polls the task, because its output is still unread if all callers were dropped.
        if let Some(result) = self.attempt.clone().and_then(FutureExt::now_or_never) {
            self.attempt = None;
            self.client = result.ok();
        }
    }
}

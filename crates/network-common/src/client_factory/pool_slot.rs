//! One place of a pool: a connection, or an attempt that everybody who meets here shares.

use std::future::Future;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;

use crate::client::TransportClient;
use crate::error::{ErrorKind, TransportError};

type ConnectAttempt = Shared<BoxFuture<'static, Result<TransportClient, TransportError>>>;

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
    /// The connection, if it can be used. It counts as just used, so that the idle clock does not
    /// close it meanwhile.
    pub(super) fn active_client(&self) -> Option<TransportClient> {
        let client = self.state.lock().client.clone()?;
        client.mark_used().then_some(client)
    }

    /// The connection, made by `connect` unless somebody is at it already. The attempt runs on a
    /// task of its own: it does not end with the caller that began it.
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
                            let text = "connecting was cut off: the runtime shuts down";
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

    /// Whether there is a connection that is not known to have ended, or an attempt.
    pub(super) fn is_occupied(&self) -> bool {
        let state = self.state.lock();
        state.attempt.is_some() || state.client.as_ref().is_some_and(TransportClient::is_active)
    }

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
    /// Puts the outcome of a finished attempt in place; also of one whose callers have all gone.
    fn finish_attempt(&mut self) {
        // Polled, not peeked at: when all callers have gone, nobody has taken the outcome out of
        // its task yet.
        if let Some(outcome) = self.attempt.clone().and_then(FutureExt::now_or_never) {
            self.attempt = None;
            self.client = outcome.ok();
        }
    }
}

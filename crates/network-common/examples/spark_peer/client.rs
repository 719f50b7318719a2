//! What the cases are made of: requests with deadlines, checks of their answers, and the count of
//! both.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use network_common::{
    ErrorKind, RpcHandler, RpcResponseCallback, StreamFuture, TransportClient, TransportError,
};

use crate::protocol::split_verb;

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Counts cases and prints a line for each.
#[derive(Default)]
pub(crate) struct Report {
    passed: u32,
    failed: u32,
}

impl Report {
    pub(crate) async fn check(&mut self, name: &str, case: impl Future<Output = Result<()>>) {
        let start = Instant::now();
        match case.await {
            Ok(()) => {
                self.passed += 1;
                println!("ok {name} ({} ms)", start.elapsed().as_millis());
            }
            Err(error) => {
                self.failed += 1;
                // One line per case: a failure may carry the server's whole stack trace.
                println!("FAILED {name}: {}", format!("{error:#}").replace(['\n', '\r'], " | "));
            }
        }
    }

    pub(crate) fn skip(&self, name: &str, reason: &str) {
        println!("skipped {name}: {reason}");
    }

    /// Prints the sum; true when nothing failed.
    pub(crate) fn finish(self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

/// Waits for an answer that must come and succeed.
pub(crate) async fn answer<T>(
    request: impl Future<Output = Result<T, TransportError>>,
) -> Result<T> {
    Ok(within(request).await??)
}

/// Waits for a failure of `kind` whose text contains `part`.
pub(crate) async fn fails<T>(
    request: impl Future<Output = Result<T, TransportError>>,
    kind: ErrorKind,
    part: &str,
) -> Result<()> {
    let Err(error) = within(request).await? else { bail!("succeeded, but should have failed") };
    ensure!(error.kind() == kind, "failed as {:?}, not {kind:?}: {error}", error.kind());
    ensure!(error.to_string().contains(part), "the failure does not say \"{part}\": {error}");
    Ok(())
}

/// Waits for the end of a connection.
pub(crate) async fn ends(client: &TransportClient) -> Result<()> {
    within(client.closed()).await?;
    ensure!(!client.is_active(), "the connection is still active");
    Ok(())
}

async fn within<T>(event: impl Future<Output = T>) -> Result<T> {
    let waited = tokio::time::timeout(ANSWER_LIMIT, event).await;
    waited.with_context(|| format!("nothing happened within {} s", ANSWER_LIMIT.as_secs()))
}

/// Asks for a stream of `client` at once; the future gives all of its bytes.
pub(crate) fn whole_stream(
    client: &TransportClient,
    stream_id: &str,
) -> impl Future<Output = Result<Bytes, TransportError>> + use<> {
    let request: StreamFuture = client.stream(stream_id);
    async move { request.await?.collect().await }
}

/// Bytes are compared by position: thousands of them in a message would tell less.
pub(crate) fn equal(expected: &[u8], seen: &[u8]) -> Result<()> {
    ensure!(expected.len() == seen.len(), "wanted {} bytes, got {}", expected.len(), seen.len());
    match expected.iter().zip(seen).position(|(expected, seen)| expected != seen) {
        None => Ok(()),
        Some(i) => bail!("byte {i} of {} is {}, wanted {}", seen.len(), seen[i], expected[i]),
    }
}

pub(crate) fn equal_text(expected: &str, seen: &[u8]) -> Result<()> {
    let seen = String::from_utf8_lossy(seen);
    ensure!(expected == seen, "wanted \"{expected}\", got \"{seen}\"");
    Ok(())
}

/// Answers the server's callbacks.
pub(crate) struct CallbackHandler;

impl RpcHandler for CallbackHandler {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        match split_verb(&message) {
            (b"cb:", number) => callback.reply([b"cb-ack:", number].concat()),
            (verb, _) => {
                callback.fail(format!("unknown callback {}", String::from_utf8_lossy(verb)))
            }
        }
    }
}

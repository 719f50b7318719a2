//! Helpers of the test cases: requests with a timeout, checks of responses, and the report.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use network_common::{
    ErrorKind, RpcHandler, RpcResponseCallback, StreamFuture, TransportClient, TransportError,
};

use crate::protocol::split_verb;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Counts the passed and failed cases, and prints a line for each case.
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
                // A failure may contain a stack trace, but the output is one line per case.
                println!("FAILED {name}: {}", format!("{error:#}").replace(['\n', '\r'], " | "));
            }
        }
    }

    pub(crate) fn skip(&self, name: &str, reason: &str) {
        println!("skipped {name}: {reason}");
    }

    /// Prints the counts, and returns whether all cases passed.
    pub(crate) fn finish(self) -> bool {
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

/// Returns the response to a request that must succeed within the timeout.
pub(crate) async fn expect_success<T>(
    request: impl Future<Output = Result<T, TransportError>>,
) -> Result<T> {
    Ok(within(request).await??)
}

/// Checks that a request fails with `kind`, and that the error text contains `part`.
pub(crate) async fn expect_failure<T>(
    request: impl Future<Output = Result<T, TransportError>>,
    kind: ErrorKind,
    part: &str,
) -> Result<()> {
    let Err(error) = within(request).await? else {
        bail!("the request succeeded, but should have failed")
    };
    ensure!(
        error.kind() == kind,
        "the error has the kind {:?} instead of {kind:?}: {error}",
        error.kind()
    );
    ensure!(error.to_string().contains(part), "the error does not contain \"{part}\": {error}");
    Ok(())
}

/// Checks that a connection closes within the timeout.
pub(crate) async fn expect_close(client: &TransportClient) -> Result<()> {
    within(client.closed()).await?;
    ensure!(!client.is_active(), "the connection is still active");
    Ok(())
}

async fn within<T>(event: impl Future<Output = T>) -> Result<T> {
    let result = tokio::time::timeout(TIMEOUT, event).await;
    result.with_context(|| format!("the timeout of {} s has elapsed", TIMEOUT.as_secs()))
}

/// Sends a stream request immediately, and returns a future that collects the body.
pub(crate) fn collect_stream(
    client: &TransportClient,
    stream_id: &str,
) -> impl Future<Output = Result<Bytes, TransportError>> + use<> {
    let request: StreamFuture = client.stream(stream_id);
    async move { request.await?.collect().await }
}

/// Checks that two byte strings are equal. The error contains only the first difference.
pub(crate) fn check_equal(expected: &[u8], actual: &[u8]) -> Result<()> {
    let (length, actual_length) = (expected.len(), actual.len());
    ensure!(length == actual_length, "expected {length} bytes, received {actual_length}");
    match expected.iter().zip(actual).position(|(expected, actual)| expected != actual) {
        None => Ok(()),
        Some(i) => bail!("byte {i} of {length} is {} instead of {}", actual[i], expected[i]),
    }
}

pub(crate) fn check_equal_text(expected: &str, actual: &[u8]) -> Result<()> {
    let actual = String::from_utf8_lossy(actual);
    ensure!(expected == actual, "expected \"{expected}\", received \"{actual}\"");
    Ok(())
}

/// Responds to the RPCs that the server sends for a `callback` request.
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

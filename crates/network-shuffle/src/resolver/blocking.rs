//! [`run_blocking`]: disk I/O apart from the tasks that serve connections.

use crate::request_error::RequestError;

/// Runs disk I/O on a blocking thread of the runtime.
pub(super) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RequestError> + Send + 'static,
) -> Result<T, RequestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RequestError::runtime(format!("disk access failed: {error}"))),
    }
}

//! Runs code that blocks on a thread of its own, except in a simulation.

use std::io;

/// Runs `work` on a blocking thread of the runtime; in a simulation, on this thread.
///
/// # Errors
/// The error of `work`; or kind `Other` if `work` panicked or the runtime is shutting down.
///
/// # Cancel safety
/// Cancel safe. Work that has begun continues on its thread.
pub async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    if is_simulated() {
        return work();
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Returns whether this thread runs a simulation, so that no other thread may be used.
#[must_use]
pub fn is_simulated() -> bool {
    #[cfg(feature = "sim")]
    return crate::sim::is_simulated();
    #[cfg(not(feature = "sim"))]
    false
}

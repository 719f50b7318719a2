//! Resolves host names, with a bound on the number of concurrent look-ups.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

use crate::address::PeerAddress;

/// Maximal number of look-ups of this process at a time.
const MAX_LOOKUPS: usize = 64;
/// A name resolution that takes longer is logged as a warning.
const SLOW_LOOKUP: Duration = Duration::from_secs(2);

/// One permit for each look-up that may run.
static LOOKUPS: Semaphore = Semaphore::const_new(MAX_LOOKUPS);

/// Returns the addresses of a host; never empty.
///
/// # Errors
/// The name does not resolve.
pub(super) async fn lookup(address: &PeerAddress) -> io::Result<Vec<SocketAddr>> {
    if let Some(address) = address.as_socket_addr() {
        return Ok(vec![address]);
    }
    let target = (address.host().to_owned(), address.port());
    let started = Instant::now();
    let resolved =
        run_bounded(&LOOKUPS, move || target.to_socket_addrs().map(Iterator::collect::<Vec<_>>));
    let resolved = resolved.await?;
    if started.elapsed() > SLOW_LOOKUP {
        tracing::warn!(peer = %address, took = ?started.elapsed(), "slow name resolution");
    }
    if resolved.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name resolves to no address"));
    }
    Ok(resolved)
}

/// Runs `blocking` on a thread of its own, once there is a permit.
///
/// The blocking threads of the runtime read files, which must not wait for a name server. The
/// thread keeps its permit until it ends, also if the caller is cancelled.
async fn run_bounded<T: Send + 'static>(
    permits: &'static Semaphore,
    blocking: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let permit = permits.acquire().await.map_err(io::Error::other)?;
    let (sender, result) = oneshot::channel();
    std::thread::Builder::new().name("name-lookup".to_owned()).spawn(move || {
        let result = blocking();
        drop(permit);
        // Fails if the caller is cancelled.
        let _ = sender.send(result);
    })?;
    result.await.map_err(io::Error::other)?
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;

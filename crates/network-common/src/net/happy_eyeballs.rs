//! Connects to one of several addresses of a host (RFC 8305, "Happy Eyeballs").

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;

/// The time after which the next address is tried as well (RFC 8305, section 5).
pub(super) const NEXT_ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Connects to one of several addresses of a host, as RFC 8305 describes.
///
/// The families alternate. The next address is tried when an attempt fails, or 250 ms after the
/// last one started. The first connection wins; the other attempts are dropped.
pub(super) async fn dial_any<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    dial_one: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut untried = alternate_families(addresses);
    let mut attempts = FuturesUnordered::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "no address to connect to");
    loop {
        match untried.pop_front() {
            Some(address) => attempts.push(dial_one(address)),
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            biased;
            Some(result) = attempts.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => last_error = error,
            },
            () = tokio::time::sleep(NEXT_ATTEMPT_DELAY), if !untried.is_empty() => {}
        }
    }
}

/// Orders addresses so that the families alternate, beginning with the family of the first one.
pub(super) fn alternate_families(addresses: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    let is_first_ipv4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (first, second): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv4() == is_first_ipv4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut ordered = VecDeque::new();
    loop {
        let pair = [first.next(), second.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten());
    }
}

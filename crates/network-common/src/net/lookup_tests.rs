//! The bound of concurrent look-ups, with look-ups that block until the test releases them.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use super::*;

const PERMITS: usize = 3;
static PERMITTED: Semaphore = Semaphore::const_new(PERMITS);

/// Cancelled look-ups still occupy their threads, so later ones wait; and the blocking threads of
/// the runtime, which read files, stay free.
#[test]
fn fault_t9_cancelled_lookups_are_bounded_and_block_no_file_work() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, released) = mpsc::channel::<()>();
        let (released, (started, mut starts)) =
            (Arc::new(Mutex::new(released)), tokio::sync::mpsc::unbounded_channel());
        for _ in 0..10 * PERMITS {
            let (released, started) = (Arc::clone(&released), started.clone());
            let lookup = tokio::spawn(run_bounded(&PERMITTED, move || {
                let _ = started.send(());
                let _ = released.lock().unwrap().recv();
                Ok(())
            }));
            tokio::task::yield_now().await;
            lookup.abort();
        }
        for _ in 0..PERMITS {
            starts.recv().await.unwrap();
        }
        assert_eq!(PERMITTED.available_permits(), 0, "the threads still hold the permits");
        assert!(starts.try_recv().is_err(), "more look-ups run than are permitted");
        let file_work = tokio::task::spawn_blocking(|| 7).await.unwrap();
        assert_eq!(file_work, 7);
        drop(release);
        assert_eq!(run_bounded(&PERMITTED, || Ok(1)).await.unwrap(), 1);
    });
}

/// A panic of the resolver gives its permit back and reports an error.
#[tokio::test]
async fn fault_t9_lookup_that_panics_gives_its_permit_back() {
    static ONE: Semaphore = Semaphore::const_new(1);
    assert!(run_bounded(&ONE, || -> io::Result<()> { panic!("resolver") }).await.is_err());
    assert_eq!(run_bounded(&ONE, || Ok(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn fault_t9_ip_addresses_need_no_lookup() {
    for (host, expected) in [("::1", "[::1]:7"), ("[fe80::1%3]", "[fe80::1%3]:7")] {
        let all = LOOKUPS.acquire_many(MAX_LOOKUPS as u32).await.unwrap();
        let addresses = lookup(&PeerAddress::new(host, 7)).await.unwrap();
        assert_eq!(addresses, [expected.parse::<SocketAddr>().unwrap()]);
        drop(all);
    }
}

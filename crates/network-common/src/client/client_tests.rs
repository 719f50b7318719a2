//! The order in which authentication changes the shared state of a connection.

use std::sync::atomic::AtomicBool;
use std::task::{Wake, Waker};

use super::*;
use crate::budget::ConnectionAccount;
use crate::error::BoxError;
use crate::session::{FilterOutput, Session, WriteQueue};

/// A filter that yields nothing.
struct Idle;

impl ByteFilter for Idle {
    fn transform(&mut self, _: &[u8], _: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A driver waker that records the state at its wake-up.
struct Driver {
    shared: Arc<SharedConnection>,
    found_both: AtomicBool,
}

impl Wake for Driver {
    fn wake(self: Arc<Self>) {
        let both = self.shared.filters_installed.load(Ordering::Relaxed)
            && self.shared.client_id.get().is_some();
        self.found_both.store(both, Ordering::Relaxed);
    }
}

/// Otherwise the driver could read sealed bytes as plain ones, or apply the limits for
/// unauthenticated peers.
#[test]
fn woken_driver_sees_filters_and_client_id() {
    let peer = ([127, 0, 0, 1], 1).into();
    let account = ConnectionAccount::unlimited();
    let queue = WriteQueue::new(1 << 20, "spark.test.limit".into(), account.unread());
    let session = Session::new(peer, queue);
    let shared = Arc::new(SharedConnection::new(session, account, (peer, peer), false));
    let driver =
        Arc::new(Driver { shared: Arc::clone(&shared), found_both: AtomicBool::new(false) });
    shared.session.lock().set_driver_waker(Waker::from(Arc::clone(&driver)));
    let filters = FilterPair { seal_filter: Box::new(Idle), open_filter: Box::new(Idle) };
    shared.set_authenticated("app-1".to_owned(), Some(filters), true).unwrap();
    assert!(driver.found_both.load(Ordering::Relaxed));
}

//! What the handles of a connection, its driver and its callbacks have in common.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{ErrorKind, TransportError};
use crate::session::{CloseRequest, FilterPair, Session};

/// Names one connection, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// One connection, shared by its handles, its driver and the callbacks that answer over it.
#[derive(Debug)]
pub(crate) struct SharedConnection {
    pub(crate) session: Mutex<Session>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(super) id: ConnectionId,
    /// False from the moment the connection is known to be of no more use.
    pub(super) active: AtomicBool,
    /// New requests of the peer fail, and the connection ends when the earlier ones are answered.
    draining: AtomicBool,
    /// The reader had better look whether the peer must wait.
    pub(crate) recheck_read_pause: AtomicBool,
    /// Filters wait in the session for the reader.
    pub(crate) filters_installed: AtomicBool,
    pub(super) client_id: OnceLock<String>,
    /// A peer without client id may only send what a handshake needs.
    awaits_identity: AtomicBool,
    /// Tells those who wait for the end of the connection.
    pub(crate) closed_notify: Notify,
    /// Bytes read and written, for the idle clock.
    pub(crate) moved: AtomicU64,
}

impl SharedConnection {
    pub(crate) fn new(session: Session, peer: SocketAddr, local: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            session: Mutex::new(session),
            peer,
            local,
            id: ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed)),
            active: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            recheck_read_pause: AtomicBool::new(false),
            filters_installed: AtomicBool::new(false),
            client_id: OnceLock::new(),
            awaits_identity: AtomicBool::new(false),
            closed_notify: Notify::new(),
            moved: AtomicU64::new(0),
        }
    }

    pub(crate) fn deactivate(&self) {
        self.active.store(false, Ordering::Release);
    }

    pub(crate) fn mark_active(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Changes the session and wakes the driver if it sleeps.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Session) -> T) -> T {
        let mut session = self.session.lock();
        let result = change(&mut session);
        let driver = session.take_driver_waker();
        drop(session);
        if let Some(driver) = driver {
            driver.wake();
        }
        result
    }

    /// From here on the peer is a stranger until it has a client id.
    #[cfg(feature = "auth")]
    pub(crate) fn require_authentication(&self) {
        self.awaits_identity.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_client_id(&self, id: String) -> Result<(), TransportError> {
        self.client_id.set(id).map_err(|id| {
            let text = format!(
                "client id '{id}' refused: the connection to {} has one already",
                self.peer
            );
            TransportError::new(ErrorKind::Refused, text).with_peer(self.peer)
        })
    }

    /// The reader learns of them under the session's lock: what it takes in afterwards is theirs.
    pub(super) fn install_filters(
        &self,
        session: &mut Session,
        filters: FilterPair,
    ) -> Result<(), TransportError> {
        if !session.install_filters(filters) {
            let text = format!("filters refused: the connection to {} has some already", self.peer);
            return Err(TransportError::new(ErrorKind::Refused, text).with_peer(self.peer));
        }
        self.filters_installed.store(true, Ordering::Release);
        Ok(())
    }

    /// The peer is no stranger any more, and all that follows passes through filters, if there are
    /// some: both at once, so that nothing is sent or read in between.
    #[cfg(feature = "auth")]
    pub(crate) fn set_authenticated(
        &self,
        id: String,
        filters: Option<FilterPair>,
    ) -> Result<(), TransportError> {
        self.update(|session| {
            if let Some(filters) = filters {
                self.install_filters(session, filters)?;
            }
            self.set_client_id(id)
        })
    }

    pub(crate) fn is_peer_unauthenticated(&self) -> bool {
        self.awaits_identity.load(Ordering::Relaxed) && self.client_id.get().is_none()
    }

    /// Whether client bootstraps are running.
    pub(crate) fn set_bootstrapping(&self, running: bool) {
        self.update(|session| session.is_bootstrapping = running);
    }

    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.update(|_| ());
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self, closing: CloseRequest) {
        self.deactivate();
        self.update(|session| session.close(closing));
    }
}

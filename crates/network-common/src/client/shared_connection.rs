//! [`SharedConnection`]: the session of a connection behind its lock, and its atomic flags.
//!
//! The handles, the driver and the reply callbacks of a connection share it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::budget::ConnectionAccount;
use crate::error::{ErrorKind, TransportError};
use crate::peer_text::peer_name;
use crate::session::{CloseRequest, FilterPair, Session};

/// Identifies one connection within this process.
///
/// ```
/// use network_common::TransportClient;
///
/// fn is_same_connection(one: &TransportClient, other: &TransportClient) -> bool {
///     one.id() == other.id()
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

/// The state of one connection that its handles, driver and callbacks share.
#[derive(Debug)]
pub(crate) struct SharedConnection {
    pub(crate) session: Mutex<Session>,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(super) id: ConnectionId,
    /// The peer opened the connection.
    pub(super) is_accepted: bool,
    /// Is false once the connection is being closed, has ended or was marked as timed out.
    pub(super) active: AtomicBool,
    /// New requests of the peer fail; the connection is closed after its active requests.
    draining: AtomicBool,
    /// The reader must check whether to pause reading.
    pub(crate) recheck_read_pause: AtomicBool,
    /// The session holds new filters that the reader must install.
    pub(crate) filters_installed: AtomicBool,
    pub(super) client_id: OnceLock<String>,
    /// The peer is unauthenticated until `client_id` is set.
    requires_authentication: AtomicBool,
    /// The peer may have replayed its handshake: no sealed frame of it has opened yet.
    awaits_sealed_frame: AtomicBool,
    /// Notified when the peer is authenticated, and at the end of the connection.
    pub(crate) state_notify: Notify,
    /// The bytes that the connection holds of the budget and has transferred.
    pub(crate) account: Arc<ConnectionAccount>,
}

impl SharedConnection {
    pub(crate) fn new(
        session: Session,
        account: Arc<ConnectionAccount>,
        (peer, local): (SocketAddr, SocketAddr),
        is_accepted: bool,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            session: Mutex::new(session),
            peer,
            local,
            id: ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed)),
            is_accepted,
            active: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            recheck_read_pause: AtomicBool::new(false),
            filters_installed: AtomicBool::new(false),
            client_id: OnceLock::new(),
            requires_authentication: AtomicBool::new(false),
            awaits_sealed_frame: AtomicBool::new(false),
            state_notify: Notify::new(),
            account,
        }
    }

    /// Returns whether the connection has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.session.lock().close_reason().is_some()
    }

    /// Marks the connection as unusable for the pool.
    pub(crate) fn deactivate(&self) {
        self.active.store(false, Ordering::Release);
    }

    /// Changes the session under its lock, then wakes the driver if it sleeps.
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

    /// Queues a response as [`update`](Self::update) does, then keeps the budget.
    ///
    /// The budget may close another connection and drop its control frames.
    pub(crate) fn respond<T>(&self, queue: impl FnOnce(&mut Session) -> T) -> T {
        let result = self.update(queue);
        self.account.budget.close_largest_if_exceeded();
        result
    }

    /// Lets the budget close the connection and drop its queued control frames.
    pub(crate) fn register_in_budget(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        self.account.on_end(move |error| {
            let Some(shared) = shared.upgrade() else { return };
            shared.deactivate();
            drop(shared.update(|session| session.close_now(error)));
        });
    }

    /// Treats the peer as unauthenticated until it has a client id.
    #[cfg(feature = "auth")]
    pub(crate) fn require_authentication(&self) {
        self.requires_authentication.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_client_id(&self, id: String) -> Result<(), TransportError> {
        self.client_id.set(id).map_err(|id| {
            let text = format!(
                "cannot set the client id '{}': the connection to {} already has one",
                peer_name(id),
                self.peer
            );
            TransportError::new(ErrorKind::InvalidState, text).with_peer(self.peer)
        })
    }

    /// Installs filters while the session is locked, so that the reader filters all later bytes.
    pub(super) fn install_filters(
        &self,
        session: &mut Session,
        filters: FilterPair,
    ) -> Result<(), TransportError> {
        if !session.install_filters(filters) {
            let text =
                format!("cannot install filters: the connection to {} already has some", self.peer);
            return Err(TransportError::new(ErrorKind::InvalidState, text).with_peer(self.peer));
        }
        self.filters_installed.store(true, Ordering::Release);
        Ok(())
    }

    /// Sets the client id and the filters in one step, so that no byte is sent in between.
    ///
    /// If the handshake `is_replayable`, the first sealed frame proves that the peer has the keys.
    #[cfg(feature = "auth")]
    pub(crate) fn set_authenticated(
        &self,
        id: String,
        filters: Option<FilterPair>,
        is_replayable: bool,
    ) -> Result<(), TransportError> {
        self.update(|session| {
            if let Some(filters) = filters {
                self.install_filters(session, filters)?;
                self.awaits_sealed_frame.store(is_replayable, Ordering::Relaxed);
            }
            self.set_client_id(id)
        })?;
        self.state_notify.notify_waiters();
        Ok(())
    }

    /// Returns whether the peer has to prove by a sealed frame that its handshake is no replay.
    pub(crate) fn awaits_sealed_frame(&self) -> bool {
        self.awaits_sealed_frame.load(Ordering::Relaxed)
    }

    /// Called when the first sealed frame of the peer has opened.
    pub(crate) fn on_sealed_frame(&self) {
        self.awaits_sealed_frame.store(false, Ordering::Relaxed);
        self.state_notify.notify_waiters();
    }

    /// Completes when the peer has proved that it knows the secret, or the connection has ended.
    #[cfg(feature = "auth")]
    pub(crate) async fn wait_until_proved(&self) {
        loop {
            let mut notified = std::pin::pin!(self.state_notify.notified());
            // Registered before the check, so that a change after the check is not missed.
            notified.as_mut().enable();
            let is_proved = self.has_client_id() && !self.awaits_sealed_frame();
            if is_proved || self.is_closed() {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn has_client_id(&self) -> bool {
        self.client_id.get().is_some()
    }

    /// Returns whether the peer must authenticate and has not yet.
    pub(crate) fn is_peer_unauthenticated(&self) -> bool {
        self.requires_authentication.load(Ordering::Relaxed) && self.client_id.get().is_none()
    }

    /// Sets whether client bootstraps are running.
    pub(crate) fn set_bootstrapping(&self, running: bool) {
        self.update(|session| session.is_bootstrapping = running);
    }

    /// Rejects new requests; the driver closes the connection after its active requests.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.update(|_| ());
    }

    /// Returns whether [`drain`](Self::drain) was called.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Requests the end of the connection.
    pub(crate) fn close(&self, request: CloseRequest) {
        self.deactivate();
        self.update(|session| session.close(request));
    }
}

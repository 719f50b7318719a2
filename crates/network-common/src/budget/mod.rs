//! [`ByteBudget`]: the bytes that a process holds for its peers, and their limit.
//!
//! Every connection counts its bytes in a [`ConnectionAccount`]. Bodies are requested from stream
//! managers only within the limit, and large requests over it are refused. If the limit is
//! exceeded nevertheless, connections whose peers do not read are closed.

mod account;
mod memory_size;
mod pressure;
mod share;
mod waiting_bodies;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use parking_lot::Mutex;
use slab::Slab;

pub(crate) use account::{ConnectionAccount, Reservation};
use pressure::Monitor;
pub use share::BudgetShare;
use waiting_bodies::WaitingBodies;

/// The setting of the process's limit.
pub(crate) const SETTING: &str = "spark.network.maxHeldBytes";
/// The number of bytes by which a count may differ from what is held.
///
/// Smaller changes do not touch the memory that all connections share.
pub(crate) const STEP: u64 = 64 << 10;
/// The most bytes over the limit at which a connection is closed without a grace period.
const MAX_OVERSHOOT: u64 = 32 << 20;

/// A limit of the bytes that connections hold for their peers.
///
/// It counts what a peer has not read yet (responses, chunks and streams in memory, notices, texts
/// of failures), requests that have not arrived completely, and the names in queued requests. The
/// content of files, and the responses to requests of this side, do not count. Each connection may
/// hold 64 KiB that are not counted.
///
/// The connections of a process share one budget, whose limit is the setting
/// `spark.network.maxHeldBytes`; by default, a quarter of the memory of the machine or of the
/// control group. A context can have [a budget of its
/// own](crate::TransportContext::with_byte_budget). Cloning is cheap; clones share the counts.
///
/// Near the limit,
///
/// * stream managers are not asked for further bodies; connections take turns, and a connection
///   that holds much waits longer;
/// * requests over 64 KiB are refused: the caller gets a retryable error, and the connection stays
///   open. A request that is larger than the limit itself is refused finally;
/// * the requests of a connection are not read while its peer has not read the responses to earlier
///   ones;
/// * a connection whose peer has taken less than 64 KiB for 1 s is closed: the one that holds the
///   most bytes for the longest time first. Without the grace period if the limit is exceeded by a
///   quarter of it or by 32 MiB.
///
/// ```
/// use network_common::{ByteBudget, NoOpRpcHandler, TransportConf, TransportContext};
///
/// let budget = ByteBudget::new(128 << 20);
/// let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new())
///     .with_byte_budget(&budget);
/// assert_eq!(context.byte_budget().limit(), 128 << 20);
/// assert_eq!(budget.held(), 0);
/// ```
#[derive(Clone)]
pub struct ByteBudget(Arc<Budget>);

struct Budget {
    limit: AtomicU64,
    held: AtomicU64,
    /// The estimated size of bodies that stream managers have been asked for.
    requested: AtomicU64,
    /// The number of entries of `waiting`.
    waiting_count: AtomicUsize,
    waiting: Mutex<WaitingBodies>,
    /// A request was refused since the monitor checked last.
    has_refused: AtomicBool,
    /// The drivers that do not read requests until the limit is kept again.
    paused: Mutex<Vec<Waker>>,
    has_paused: AtomicBool,
    accounts: Mutex<Slab<Weak<ConnectionAccount>>>,
    monitor: Mutex<Monitor>,
}

impl ByteBudget {
    /// Returns a budget of `limit` bytes that is independent of the process's one.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Budget {
            limit: AtomicU64::new(limit),
            held: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            waiting_count: AtomicUsize::new(0),
            waiting: Mutex::default(),
            has_refused: AtomicBool::new(false),
            paused: Mutex::default(),
            has_paused: AtomicBool::new(false),
            accounts: Mutex::default(),
            monitor: Mutex::default(),
        }))
    }

    /// Returns the budget of this process.
    #[must_use]
    pub fn process() -> Self {
        static PROCESS: OnceLock<ByteBudget> = OnceLock::new();
        PROCESS.get_or_init(|| Self::new(memory_size::available() / 4)).clone()
    }

    /// Returns the limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.0.limit.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.0.held.load(Ordering::SeqCst)
    }

    /// Returns whether more bytes are held than the limit allows.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.held() > self.limit()
    }

    /// Returns a count of bytes that are held outside of connections, which starts with 0.
    #[must_use]
    pub fn share(&self) -> BudgetShare {
        BudgetShare::new(self.clone())
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::SeqCst);
        self.subtract(0);
    }

    /// Returns the bytes over which a connection is closed without a grace period.
    fn hard_limit(&self) -> u64 {
        let limit = self.limit();
        limit.saturating_add((limit / 4).min(MAX_OVERSHOOT))
    }

    /// Wakes the driver of `waker` when the limit is kept again.
    ///
    /// Returns false if that is so already.
    pub(crate) fn wake_when_kept(&self, waker: &Waker) -> bool {
        let mut paused = self.0.paused.lock();
        if !paused.iter().any(|known| known.will_wake(waker)) {
            paused.push(waker.clone());
        }
        self.0.has_paused.store(true, Ordering::SeqCst);
        self.is_exceeded()
    }

    /// Describes the limit for error texts.
    pub(crate) fn limit_text(&self) -> String {
        format!("{} of {} bytes ({SETTING}) are held for peers", self.held(), self.limit())
    }

    // Changes of what is held and the registration of waiting tasks are sequentially consistent:
    // otherwise a task could start to wait after the last wake-up.

    fn add(&self, bytes: u64) {
        self.0.held.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Adds bytes if the limit allows them.
    fn try_add(&self, bytes: u64) -> bool {
        let limit = self.limit();
        let add = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= limit);
        self.0.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).is_ok()
    }

    /// Subtracts bytes, and resumes what waits for the limit.
    ///
    /// May be called under the lock of a session: the wakers are those of tasks of this crate.
    fn subtract(&self, bytes: u64) {
        let after = self.0.held.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        if after <= self.limit() && self.0.has_paused.swap(false, Ordering::SeqCst) {
            let paused = std::mem::take(&mut *self.0.paused.lock());
            paused.into_iter().for_each(Waker::wake);
        }
        self.admit_waiting();
    }
}

impl fmt::Debug for ByteBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteBudget")
            .field("limit", &self.limit())
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

//! [`ByteBudget`], and the types that it refers to and that refer to it.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::memory_size;
use crate::error::TransportError;
use crate::metrics::SideMetrics;

/// The setting of the process's limit.
pub(crate) const SETTING: &str = "spark.network.maxHeldBytes";
/// The number of bytes by which a count may differ from what is held.
///
/// Smaller changes do not touch the memory that all connections share.
pub(crate) const STEP: u64 = 64 << 10;
/// The most bytes below the limit from which on the budget counts as exhausted.
const MAX_RESERVE: u64 = 16 << 20;

/// A limit of the bytes that connections hold for their peers.
///
/// It counts what a peer has not read yet (responses, chunks and streams in memory, notices, texts
/// of failures), requests and responses that have not arrived completely, and the names in queued
/// requests. The content of files, and responses that have arrived completely, do not count. Each
/// connection may hold 64 KiB that are not counted.
///
/// The connections of a process share one budget, whose limit is the setting
/// `spark.network.maxHeldBytes`; by default, a quarter of the memory of the machine or of the
/// control group. A context can have [a budget of its
/// own](crate::TransportContext::with_byte_budget). Cloning is cheap; clones share the counts.
///
/// * From 3/4 of the limit on, stream managers are not asked for further bodies. Connections take
///   turns, and one that holds much waits longer. A body that is larger than the limit is requested
///   while at most 1/4 is held.
/// * From 7/8 on (at most 16 MiB below the limit), the budget is
///   [exhausted](Self::is_exhausted): requests over 64 KiB are refused with a retryable error, and
///   the requests of a connection are not read while its peer leaves responses unread. A request
///   or the response to an RPC counts one and a half times while it arrives; one that is too large
///   for an empty budget is refused finally. A response over 64 KiB for which no bytes are left is
///   skipped, and its request fails with [`ErrorKind::Limit`](crate::ErrorKind::Limit).
/// * While it is exhausted, or a body waits, or a message was refused, a connection is closed if
///   the system of its peer takes or sends less than 64 KiB in 2 s: the one that holds the most
///   bytes for the longest time first.
/// * Over the limit, the connection that holds the most bytes is closed at once.
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
pub struct ByteBudget(pub(super) Arc<Budget>);

pub(super) struct Budget {
    pub(super) limit: AtomicU64,
    pub(super) held: AtomicU64,
    /// The estimated size of bodies that stream managers have been asked for.
    pub(super) requested: AtomicU64,
    /// The number of entries of `waiting`.
    pub(super) waiting_count: AtomicUsize,
    pub(super) waiting: Mutex<WaitingBodies>,
    /// A message was refused since the monitor checked last.
    pub(super) has_refused: AtomicBool,
    /// The drivers that do not read requests while the budget is exhausted.
    pub(super) paused: Mutex<Vec<Waker>>,
    pub(super) has_paused: AtomicBool,
    pub(super) accounts: Mutex<Slab<Weak<ConnectionAccount>>>,
    pub(super) monitor: Mutex<Monitor>,
}

/// Ends a connection with an error, and drops its queued control frames.
pub(super) type EndConnection = Box<dyn Fn(TransportError) + Send + Sync>;

/// The bytes that one connection holds of a budget, and its progress.
pub(crate) struct ConnectionAccount {
    pub(crate) budget: ByteBudget,
    pub(super) metrics: Arc<SideMetrics>,
    pub(super) peer: SocketAddr,
    /// The key in the accounts of the budget.
    pub(super) key: usize,
    /// The bytes that the peer has not read.
    pub(super) unread: AtomicU64,
    /// The bytes of messages that have not arrived completely.
    pub(super) incomplete: AtomicU64,
    /// The number of bytes read from the socket.
    pub(crate) received_bytes: AtomicU64,
    /// The number of bytes written to the socket.
    pub(crate) sent_bytes: AtomicU64,
    /// The peer had made no progress when the monitor checked last.
    pub(super) is_stalled: AtomicBool,
    /// The connection is being closed because of the budget.
    pub(super) is_closed: AtomicBool,
    pub(super) end: OnceLock<EndConnection>,
}

/// The connections that wait until they may ask for their next body, the oldest first.
#[derive(Debug, Default)]
pub(super) struct WaitingBodies {
    pub(super) queue: VecDeque<WaitingBody>,
    /// A body of unknown size was admitted over the estimate and has not arrived yet.
    pub(super) has_exception: bool,
}

#[derive(Debug)]
pub(super) struct WaitingBody {
    pub(super) account: Arc<ConnectionAccount>,
    pub(super) estimate: Option<u64>,
    pub(super) admission: oneshot::Sender<BodyPermit>,
}

/// Allows to ask for one body, whose estimated size it reserves until it is dropped.
#[derive(Debug)]
pub(crate) struct BodyPermit {
    pub(super) budget: ByteBudget,
    pub(super) estimate: u64,
    pub(super) is_exception: bool,
}

/// The state of the task that checks the connections of a budget.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    /// When the task has run last. The runtime of the task may not be driven any more.
    pub(super) last_tick: Option<Instant>,
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

    /// Returns whether at least 7/8 of the limit, or all but 16 MiB, are held.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.held() > self.usual_limit()
    }

    pub(crate) fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Ordering::SeqCst);
        self.subtract(0);
    }

    /// Returns whether the connections should be observed, because the limit is near.
    pub(crate) fn is_nearly_used(&self) -> bool {
        self.held() > self.limit() / 4 * 3
    }

    /// Returns the bytes over which the budget is exhausted.
    pub(crate) fn usual_limit(&self) -> u64 {
        let limit = self.limit();
        limit - (limit / 8).min(MAX_RESERVE)
    }

    /// Wakes the driver of `waker` when the budget is not exhausted any more.
    ///
    /// Returns false if that is so already.
    pub(crate) fn wake_when_available(&self, waker: &Waker) -> bool {
        let mut paused = self.0.paused.lock();
        if !paused.iter().any(|known| known.will_wake(waker)) {
            paused.push(waker.clone());
        }
        self.0.has_paused.store(true, Ordering::SeqCst);
        self.is_exhausted()
    }

    /// Returns the length of the largest request that can be received.
    ///
    /// While a request arrives, it counts one and a half times.
    pub(crate) fn max_request(&self) -> u64 {
        self.usual_limit() / 3 * 2
    }

    /// Describes the limit for error texts.
    pub(crate) fn limit_text(&self) -> String {
        format!("{} of {} bytes ({SETTING}) are held for peers", self.held(), self.limit())
    }

    // Changes of what is held and the registration of waiting tasks are sequentially consistent:
    // otherwise a task could start to wait after the last wake-up.

    pub(super) fn add(&self, bytes: u64) {
        self.0.held.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Adds bytes if the limit allows them.
    pub(super) fn try_add(&self, bytes: u64) -> bool {
        let limit = self.usual_limit();
        let add = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= limit);
        self.0.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, add).is_ok()
    }

    /// Subtracts bytes, and resumes the tasks that wait for the limit.
    ///
    /// May be called under the lock of a session: the wakers are those of tasks of this crate.
    pub(super) fn subtract(&self, bytes: u64) {
        let after = self.0.held.fetch_sub(bytes, Ordering::SeqCst) - bytes;
        if after <= self.usual_limit() && self.0.has_paused.swap(false, Ordering::SeqCst) {
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

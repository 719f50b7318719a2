//! The threads that run the tasks of one isolated endpoint.
//!
//! This is not a tokio runtime, for two reasons. A tokio worker keeps the task that was woken last
//! for itself, so handlers that block for each other would deadlock; here any free thread takes the
//! next task. And tasks that a handler spawns must outlive the endpoint. Timers, sockets and
//! spawned tasks are those of the environment's runtime.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use async_task::{FallibleTask, Runnable};
use network_common::log_limited;
use tokio::runtime::Handle;

use crate::panics::catch_panic;
use crate::sync::{Mutex, enter, mpsc, thread, thread_local};

thread_local! {
    /// The threads of the isolated endpoint to which this thread belongs.
    static WORKERS: RefCell<Option<Arc<Workers>>> = const { RefCell::new(None) };
}

/// The threads of one isolated endpoint.
struct Workers {
    count: usize,
    /// The number of threads that are blocked by their own endpoint.
    blocked: AtomicUsize,
}

/// Returns whether this thread belongs to an isolated endpoint, so that it may be blocked.
pub(crate) fn can_block() -> bool {
    WORKERS.with(|workers| workers.borrow().is_some())
}

/// Counts this thread as blocked by its own endpoint, until the returned value is dropped.
///
/// `None` if no thread of the endpoint would be left that could end the wait.
pub(crate) fn block_on_own_endpoint() -> Option<BlockedWorker> {
    let blocked = BlockedWorker(WORKERS.with(|workers| workers.borrow().clone())?);
    let before = blocked.0.blocked.fetch_add(1, Ordering::Relaxed);
    (before + 1 < blocked.0.count).then_some(blocked)
}

/// A thread that is blocked by its own endpoint.
pub(crate) struct BlockedWorker(Arc<Workers>);

impl Drop for BlockedWorker {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A handle to the threads, which end with its last clone and the last task.
#[derive(Clone)]
pub(crate) struct IsolatedExecutor(mpsc::Sender<Runnable>);

impl IsolatedExecutor {
    /// Starts `count` threads in the context of `runtime`.
    ///
    /// # Errors
    ///
    /// The error of the operating system if a thread cannot be started.
    pub(crate) fn start(name: &str, count: usize, runtime: &Handle) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        let workers = Arc::new(Workers { count, blocked: AtomicUsize::new(0) });
        for _ in 0..count {
            let (receiver, runtime) = (Arc::clone(&receiver), runtime.clone());
            let workers = Arc::clone(&workers);
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                WORKERS.with(|own| own.replace(Some(workers)));
                let _context = enter(&runtime);
                run_worker(&receiver);
            })?;
        }
        Ok(Self(sender))
    }

    /// Runs `future` on the threads.
    ///
    /// Dropping the returned task cancels the future. The task returns `None` if it panicked.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> FallibleTask<T> {
        let sender = self.0.clone();
        let schedule = move |runnable| {
            // The threads exist as long as this sender does.
            let _ = sender.send(runnable);
        };
        let (runnable, task) = async_task::spawn(DropGuard::new(future), schedule);
        runnable.schedule();
        task.fallible()
    }
}

/// A future whose destructor does not panic, because async-task would abort the process.
struct DropGuard<F>(Option<Pin<Box<F>>>);

impl<F> DropGuard<F> {
    fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F: Future> Future for DropGuard<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match &mut self.0 {
            Some(future) => future.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for DropGuard<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        if let Err(panic) = catch_panic(|| drop(future)) {
            log_limited!(|suppressed| tracing::error!(
                suppressed,
                panic,
                "a destructor of an isolated endpoint panicked"
            ));
        }
    }
}

/// Runs tasks until all senders have been dropped.
fn run_worker(runnables: &Mutex<mpsc::Receiver<Runnable>>) {
    loop {
        let next = runnables.lock().recv();
        let Ok(runnable) = next else { return };
        // `HandlerFuture` catches the panics of handlers. This one comes from a destructor.
        if let Err(panic) = catch_panic(|| runnable.run()) {
            log_limited!(|suppressed| tracing::error!(
                suppressed,
                panic,
                "a task of an isolated endpoint panicked"
            ));
        }
    }
}

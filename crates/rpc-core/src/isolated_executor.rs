//! The threads that run the tasks of one isolated endpoint.
//!
//! This is not a tokio runtime, for two reasons. A tokio worker keeps the task that was woken last
//! for itself, so handlers that block for each other would deadlock; here any free thread takes the
//! next task. And tasks that a handler spawns must outlive the endpoint. Timers, sockets and
//! spawned tasks are those of the environment's runtime.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use async_task::{FallibleTask, Runnable};
use tokio::runtime::Handle;

use crate::sync::{Mutex, enter, mpsc, thread, thread_local};

thread_local! {
    static CAN_BLOCK: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread belongs to an isolated endpoint, so that it may be blocked.
pub(crate) fn can_block() -> bool {
    CAN_BLOCK.with(Cell::get)
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
        for _ in 0..count {
            let (receiver, runtime) = (Arc::clone(&receiver), runtime.clone());
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                CAN_BLOCK.with(|can_block| can_block.set(true));
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
        let (runnable, task) = async_task::spawn(future, schedule);
        runnable.schedule();
        task.fallible()
    }
}

/// Runs tasks until all senders have been dropped.
fn run_worker(runnables: &Mutex<mpsc::Receiver<Runnable>>) {
    loop {
        let next = runnables.lock().recv();
        let Ok(runnable) = next else { return };
        // `HandlerFuture` catches the panics of handlers. This one comes from a destructor.
        if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
            tracing::error!("a task of an isolated endpoint panicked");
        }
    }
}

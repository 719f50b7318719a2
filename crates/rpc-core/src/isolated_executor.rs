//! The own threads of an isolated endpoint.
//!
//! Not a tokio runtime: one keeps tasks that were woken last for the thread that woke them, which
//! waits for ever where handlers block for each other; and what handlers spawn would end with it.
//! Here any free thread takes the next task. Timers and sockets are those of the environment's
//! runtime.

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

/// Whether blocking this thread holds up nobody but the isolated endpoint that it belongs to.
pub(crate) fn can_block() -> bool {
    CAN_BLOCK.with(Cell::get)
}

/// A handle on threads that end with its last clone and the last task.
#[derive(Clone)]
pub(crate) struct IsolatedExecutor(mpsc::Sender<Runnable>);

impl IsolatedExecutor {
    pub(crate) fn start(name: &str, count: usize, runtime: &Handle) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let (receiver, runtime) = (Arc::clone(&receiver), runtime.clone());
            thread::Builder::new().name(name.to_owned()).spawn(move || {
                CAN_BLOCK.with(|may| may.set(true));
                let _context = enter(&runtime);
                run_worker(&receiver);
            })?;
        }
        Ok(Self(sender))
    }

    /// Runs `future` on the threads. Dropping the handle cancels it; it gives nothing if it
    /// panicked.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> FallibleTask<T> {
        let threads = self.0.clone();
        let schedule = move |runnable| {
            // The threads are there as long as this sender is.
            let _ = threads.send(runnable);
        };
        let (runnable, task) = async_task::spawn(future, schedule);
        runnable.schedule();
        task.fallible()
    }
}

fn run_worker(runnables: &Mutex<mpsc::Receiver<Runnable>>) {
    loop {
        let next = runnables.lock().recv();
        let Ok(runnable) = next else { return };
        // Handlers' panics are dealt with further up; this is a destructor's.
        if catch_unwind(AssertUnwindSafe(|| runnable.run())).is_err() {
            tracing::error!("a task of an isolated endpoint panicked");
        }
    }
}

//! Child processes with deadlines, which are killed when their owner is dropped.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use wait_timeout::ChildExt;

/// The number of stderr lines that are kept; older lines are discarded.
const MAX_STDERR_LINES: usize = 5_000;

/// The latest lines that a child wrote to stderr.
type Log = Arc<Mutex<VecDeque<String>>>;

/// A running child process.
///
/// Every wait for it has a deadline. Dropping it kills the process.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Option<JoinHandle<()>>,
    log: Log,
}

impl Process {
    /// Starts `command`. Errors refer to the process as `name`.
    pub(crate) fn start(name: impl Into<String>, command: &mut Command) -> Result<Self> {
        let name = name.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name} ({:?})", command.get_program()))?;
        let (sender, stdout) = mpsc::channel();
        if let Some(pipe) = child.stdout.take() {
            // Sending fails only if the `Process` has been dropped.
            thread::spawn(move || each_line(pipe, |line| sender.send(line).is_ok()));
        }
        let log = Log::default();
        let stderr = child.stderr.take().map(|pipe| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                each_line(pipe, |line| {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if log.len() == MAX_STDERR_LINES {
                        log.pop_front();
                    }
                    log.push_back(line);
                    true
                });
            })
        });
        let stdin = child.stdin.take();
        Ok(Self { name, child, stdin, stdout, stderr, log })
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to the stdin of the process.
    pub(crate) fn write_line(&mut self, line: &str) -> Result<()> {
        let stdin =
            self.stdin.as_mut().with_context(|| format!("the stdin of {} is closed", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("cannot write to {}", self.name))
    }

    /// Returns the next line of its stdout, or `None` at the end.
    pub(crate) fn read_line(&self, deadline: Instant) -> Result<Option<String>> {
        match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} printed no line before its deadline", self.name)
            }
        }
    }

    /// Closes its stdin and waits until the process has exited.
    pub(crate) fn exit(&mut self, deadline: Instant) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let remaining = deadline.saturating_duration_since(Instant::now());
        let Some(status) = self
            .child
            .wait_timeout(remaining)
            .with_context(|| format!("waiting for {}", self.name))?
        else {
            bail!("{} did not exit before its deadline", self.name);
        };
        if let Some(reader) = self.stderr.take() {
            // The pipe has ended, so the thread only stores the last lines.
            let _ = reader.join();
        }
        Ok(status)
    }

    /// Returns the latest lines of its stderr.
    pub(crate) fn stderr(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing fails if the process has exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` until it exits and returns the lines of its stdout.
///
/// # Errors
///
/// Fails with the output of the command if its exit status is not 0, or after `timeout`.
pub(crate) fn output(name: &str, command: &mut Command, timeout: Duration) -> Result<Vec<String>> {
    let deadline = Instant::now() + timeout;
    let mut process = Process::start(name, command)?;
    let mut lines = Vec::new();
    while let Some(line) = process.read_line(deadline)? {
        lines.push(line);
    }
    let status = process.exit(deadline)?;
    let written = || [lines.as_slice(), &process.stderr()].concat().join("\n");
    ensure!(status.success(), "{name} failed ({status}):\n{}", written());
    Ok(lines)
}

/// Passes the lines of `pipe` to `take` until the pipe ends or `take` returns false.
fn each_line(pipe: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.read_until(b'\n', &mut line) {
            // An error while reading is treated as the end of the pipe.
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                if !take(text.trim_end_matches(['\r', '\n']).to_owned()) {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn stalled_child_fails_at_its_deadline_and_is_killed_on_drop() {
        let start = Instant::now();
        let mut stalled =
            Process::start("stalled", &mut shell("echo started; exec sleep 600")).unwrap();
        assert_eq!(
            stalled.read_line(start + Duration::from_secs(60)).unwrap().as_deref(),
            Some("started")
        );
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(
            stalled.read_line(soon).unwrap_err().to_string().contains("stalled printed no line")
        );
        assert!(stalled.exit(soon).unwrap_err().to_string().contains("stalled did not exit"));
        // Dropping waits for the child, which sleeps for 600 s unless it is killed.
        drop(stalled);
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn output_error_contains_what_a_failed_command_wrote() {
        let timeout = Duration::from_secs(60);
        assert_eq!(output("sh", &mut shell("echo a; echo b"), timeout).unwrap(), ["a", "b"]);
        let error = output("sh", &mut shell("echo out; echo err >&2; exit 3"), timeout)
            .unwrap_err()
            .to_string();
        assert!(error.contains("out") && error.contains("err") && error.contains('3'), "{error}");
    }
}

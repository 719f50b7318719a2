//! Child processes that cannot outlive their owner or stall it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use wait_timeout::ChildExt;

/// Enough for the logs of a whole run; the oldest lines go first.
const STDERR_LINES: usize = 5_000;

/// What a child wrote to stderr.
type Log = Arc<Mutex<VecDeque<String>>>;

/// A running child. Every wait for it has a deadline; dropped, it is killed.
pub(crate) struct Process {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Option<JoinHandle<()>>,
    log: Log,
}

impl Process {
    /// Starts `command`. `name` is what errors call it.
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
            // Fails to send only when nobody wants the lines any more.
            thread::spawn(move || each_line(pipe, |line| sender.send(line).is_ok()));
        }
        let log = Log::default();
        let stderr = child.stderr.take().map(|pipe| {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                each_line(pipe, |line| {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    if log.len() == STDERR_LINES {
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

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Writes a line to its stdin.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().with_context(|| format!("{} is being ended", self.name))?;
        writeln!(stdin, "{line}").with_context(|| format!("cannot write to {}", self.name))
    }

    /// The next line of its stdout; `None` at the end.
    pub(crate) fn line(&self, deadline: Instant) -> Result<Option<String>> {
        match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} said nothing more within its deadline", self.name)
            }
        }
    }

    /// Ends its stdin and waits until it has exited.
    pub(crate) fn exit(&mut self, deadline: Instant) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let left = deadline.saturating_duration_since(Instant::now());
        let Some(status) =
            self.child.wait_timeout(left).with_context(|| format!("waiting for {}", self.name))?
        else {
            bail!("{} did not exit within its deadline", self.name);
        };
        if let Some(reader) = self.stderr.take() {
            // The pipe is at its end, so this only waits for its last lines to be taken over.
            let _ = reader.join();
        }
        Ok(status)
    }

    /// What it has written to stderr so far.
    pub(crate) fn stderr(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails when it has exited already, which is what this is for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `command` to its end and gives the lines of its stdout. An exit status other than 0 is an
/// error that shows what the command wrote.
pub(crate) fn output(name: &str, command: &mut Command, limit: Duration) -> Result<Vec<String>> {
    let deadline = Instant::now() + limit;
    let mut process = Process::start(name, command)?;
    let mut lines = Vec::new();
    while let Some(line) = process.line(deadline)? {
        lines.push(line);
    }
    let status = process.exit(deadline)?;
    let said = || [lines.as_slice(), &process.stderr()].concat().join("\n");
    ensure!(status.success(), "{name} failed ({status}):\n{}", said());
    Ok(lines)
}

/// Hands over the lines of `pipe` until it ends or `take` wants no more.
fn each_line(pipe: impl Read, mut take: impl FnMut(String) -> bool) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.read_until(b'\n', &mut line) {
            // A pipe that cannot be read has ended as far as its reader can tell.
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
    fn a_stalled_child_misses_its_deadline_and_does_not_outlive_its_owner() {
        let start = Instant::now();
        let mut stalled =
            Process::start("stalled", &mut shell("echo started; exec sleep 600")).unwrap();
        assert_eq!(
            stalled.line(start + Duration::from_secs(60)).unwrap().as_deref(),
            Some("started")
        );
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(stalled.line(soon).unwrap_err().to_string().contains("stalled said nothing more"));
        assert!(stalled.exit(soon).unwrap_err().to_string().contains("stalled did not exit"));
        // Waits for the child, so that it ends soon only because the child was killed.
        drop(stalled);
        assert!(start.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn output_shows_what_a_failed_command_said() {
        let limit = Duration::from_secs(60);
        assert_eq!(output("sh", &mut shell("echo a; echo b"), limit).unwrap(), ["a", "b"]);
        let error = output("sh", &mut shell("echo out; echo err >&2; exit 3"), limit)
            .unwrap_err()
            .to_string();
        assert!(error.contains("out") && error.contains("err") && error.contains('3'), "{error}");
    }
}

//! One client against one server.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;

const START_LIMIT: Duration = Duration::from_secs(60);
const CLIENT_LIMIT: Duration = Duration::from_secs(5 * 60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How much of a peer's log a failure shows.
const LOG_LINES: usize = 60;

/// What all pairs came to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

/// What one line of a client means.
#[derive(Debug, PartialEq)]
enum Line {
    Passed,
    Failed,
    /// `N passed, M failed`
    Summary(u32, u32),
    Other,
}

impl Tally {
    /// Runs `client` against `server` and counts its cases, and one more for the pair itself: that
    /// both ran and ended as they should.
    pub(crate) fn run(
        &mut self,
        label: &str,
        server: Command,
        client: impl FnOnce(u16) -> Command,
    ) {
        let failed_before = self.failed;
        let mut logs = Vec::new();
        match self.converse(label, server, client, &mut logs) {
            Ok(()) => {
                self.passed += 1;
                println!("{label}: ok both peers ended cleanly");
            }
            Err(error) => self.fail(label, &format!("both peers ended cleanly: {error:#}")),
        }
        if self.failed > failed_before {
            for line in logs {
                println!("{label}: {line}");
            }
        }
    }

    /// Counts a failure that is not a client's case.
    pub(crate) fn fail(&mut self, label: &str, reason: &str) {
        self.failed += 1;
        println!("{label}: FAILED {}", reason.replace('\n', " | "));
    }

    /// The line that CI reads; it stands alone and comes last.
    pub(crate) fn print(&self) {
        println!("{} passed, {} failed", self.passed, self.failed);
    }

    pub(crate) fn ran_anything(&self) -> bool {
        self.passed + self.failed > 0
    }

    fn converse(
        &mut self,
        label: &str,
        mut server: Command,
        client: impl FnOnce(u16) -> Command,
        logs: &mut Vec<String>,
    ) -> Result<()> {
        let mut server = Process::start("the server", &mut server)?;
        let done = self.converse_with(label, &mut server, client, logs);
        add_log(logs, "server", &server);
        done
    }

    fn converse_with(
        &mut self,
        label: &str,
        server: &mut Process,
        client: impl FnOnce(u16) -> Command,
        logs: &mut Vec<String>,
    ) -> Result<()> {
        let first = server
            .line(Instant::now() + START_LIMIT)?
            .context("the server ended before it listened")?;
        let port = first
            .strip_prefix("LISTENING ")
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("the server did not say where it listens, but: {first}"))?;

        let mut client = Process::start("the client", &mut client(port))?;
        let done = self.count_cases(label, &mut client);
        add_log(logs, "client", &client);
        done?;

        let status = server.exit(Instant::now() + STOP_LIMIT)?;
        ensure!(status.success(), "the server ended with {status}");
        for (who, process) in [("server", &*server), ("client", &client)] {
            if let Some(panic) = process.stderr().iter().find(|line| line.contains("panicked at")) {
                bail!("a panic in the {who}: {panic}");
            }
        }
        Ok(())
    }

    /// Prints and counts what the client reports, until it has exited.
    fn count_cases(&mut self, label: &str, client: &mut Process) -> Result<()> {
        let deadline = Instant::now() + CLIENT_LIMIT;
        let (mut passed, mut failed, mut summary) = (0, 0, None);
        while let Some(line) = client.line(deadline)? {
            match read_line(&line) {
                Line::Passed => {
                    self.passed += 1;
                    passed += 1;
                }
                Line::Failed => {
                    self.failed += 1;
                    failed += 1;
                }
                Line::Summary(said_passed, said_failed) => {
                    summary = Some((said_passed, said_failed));
                    // One such line is parsed from the whole output, and it is ours.
                    continue;
                }
                Line::Other => {}
            }
            println!("{label}: {line}");
        }
        let status = client.exit(deadline)?;
        ensure!(summary.is_some(), "the client broke off ({status})");
        ensure!(
            summary == Some((passed, failed)),
            "the client's summary is {summary:?}, its lines say {passed} passed, {failed} failed"
        );
        ensure!(passed > 0, "the client ran no case");
        ensure!(
            status.success() == (failed == 0),
            "the client ended with {status} after {failed} failures"
        );
        Ok(())
    }
}

fn add_log(logs: &mut Vec<String>, who: &str, process: &Process) {
    let stderr = process.stderr();
    let skipped = stderr.len().saturating_sub(LOG_LINES);
    if skipped > 0 {
        logs.push(format!("{who} log: ({skipped} lines before these)"));
    }
    logs.extend(stderr[skipped..].iter().map(|line| format!("{who} log: {line}")));
}

fn read_line(line: &str) -> Line {
    if line.starts_with("ok ") {
        return Line::Passed;
    }
    if line.starts_with("FAILED ") {
        return Line::Failed;
    }
    let counts = line.strip_suffix(" failed").and_then(|rest| rest.split_once(" passed, "));
    match counts.map(|(passed, failed)| (passed.parse(), failed.parse())) {
        Some((Ok(passed), Ok(failed))) => Line::Summary(passed, failed),
        _ => Line::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_clients() {
        assert_eq!(read_line("ok echo of nothing (1 ms)"), Line::Passed);
        assert_eq!(read_line("FAILED echo: 3 passed, 4 failed"), Line::Failed);
        assert_eq!(read_line("12 passed, 3 failed"), Line::Summary(12, 3));
        for other in
            ["skipped merged block meta: came with Spark 3.2", "okay", "", "x passed, 3 failed"]
        {
            assert_eq!(read_line(other), Line::Other, "{other}");
        }
    }

    /// `/bin/sh` as both peers: what is printed and how it ends is the script's.
    fn run_scripts(server: &str, client: &str) -> (u32, u32) {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let mut tally = Tally::default();
        tally.run("test", shell(server), |port| {
            assert_eq!(port, 7);
            shell(client)
        });
        (tally.passed, tally.failed)
    }

    const SERVER: &str = "echo LISTENING 7; cat";

    #[test]
    fn a_pair_counts_its_cases_and_itself() {
        assert_eq!(run_scripts(SERVER, "echo ok a; echo ok b; echo 2 passed, 0 failed"), (3, 0));
        assert_eq!(
            run_scripts(SERVER, "echo ok a; echo FAILED b; echo 1 passed, 1 failed; exit 1"),
            (2, 1)
        );
    }

    #[test]
    fn a_pair_that_went_wrong_fails() {
        // A client that broke off, lied about its cases, ran none, or about its exit code.
        assert_eq!(run_scripts(SERVER, "echo ok a"), (1, 1));
        assert_eq!(run_scripts(SERVER, "echo ok a; echo 2 passed, 0 failed"), (1, 1));
        assert_eq!(run_scripts(SERVER, "echo 0 passed, 0 failed"), (0, 1));
        assert_eq!(run_scripts(SERVER, "echo ok a; echo 1 passed, 0 failed; exit 1"), (1, 1));
        // A server that panicked, failed, or never listened.
        let client = "echo ok a; echo 1 passed, 0 failed";
        assert_eq!(
            run_scripts("echo thread main panicked at x >&2; echo LISTENING 7; cat", client),
            (1, 1)
        );
        assert_eq!(run_scripts("echo LISTENING 7; cat; exit 3", client), (1, 1));
        assert_eq!(run_scripts("echo no port free", client), (0, 1));
    }
}

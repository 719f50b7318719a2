//! Runs one client against one server and counts the results.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::process::Process;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The number of log lines of each peer that are printed after a failure.
const LOG_LINES: usize = 60;

/// The number of passed and failed cases of all pairs.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

/// A parsed line of a client's output.
#[derive(Debug, PartialEq)]
enum Line {
    Passed,
    Failed,
    /// `N passed, M failed`
    Summary(u32, u32),
    Other,
}

impl Tally {
    /// Runs `client` against `server` and counts its cases.
    ///
    /// One more case is the pair itself: it passes if both processes run and exit cleanly.
    pub(crate) fn run(
        &mut self,
        label: &str,
        server: Command,
        client: impl FnOnce(u16) -> Command,
    ) {
        let failed_before = self.failed;
        let mut logs = Vec::new();
        match self.run_pair(label, server, client, &mut logs) {
            Ok(()) => self.pass(label, "both peers ended cleanly"),
            Err(error) => self.fail(label, &format!("both peers ended cleanly: {error:#}")),
        }
        if self.failed > failed_before {
            for line in logs {
                println!("{label}: {line}");
            }
        }
    }

    /// Counts and prints a success that the client did not report.
    pub(crate) fn pass(&mut self, label: &str, what: &str) {
        self.passed += 1;
        println!("{label}: ok {what}");
    }

    /// Counts and prints a failure that the client did not report.
    pub(crate) fn fail(&mut self, label: &str, reason: &str) {
        self.failed += 1;
        println!("{label}: FAILED {}", reason.replace('\n', " | "));
    }

    /// Prints the summary, which CI reads from the last line.
    pub(crate) fn print(&self) {
        println!("{} passed, {} failed", self.passed, self.failed);
    }

    pub(crate) fn has_run(&self) -> bool {
        self.passed + self.failed > 0
    }

    fn run_pair(
        &mut self,
        label: &str,
        mut server: Command,
        client: impl FnOnce(u16) -> Command,
        logs: &mut Vec<String>,
    ) -> Result<()> {
        let mut server = Process::start("the server", &mut server)?;
        let result = self.run_client(label, &mut server, client, logs);
        add_log(logs, "server", &server);
        result
    }

    fn run_client(
        &mut self,
        label: &str,
        server: &mut Process,
        client: impl FnOnce(u16) -> Command,
        logs: &mut Vec<String>,
    ) -> Result<()> {
        let first = server
            .read_line(Instant::now() + START_TIMEOUT)?
            .context("the server exited before it listened")?;
        let port = first
            .strip_prefix("LISTENING ")
            .and_then(|port| port.parse().ok())
            .with_context(|| format!("the server printed no port, but: {first}"))?;

        let mut client = Process::start("the client", &mut client(port))?;
        let result = self.count_cases(label, &mut client);
        add_log(logs, "client", &client);
        result?;

        let status = server.exit(Instant::now() + STOP_TIMEOUT)?;
        ensure!(status.success(), "the server exited with {status}");
        for (role, process) in [("server", &*server), ("client", &client)] {
            if let Some(panic) = process.stderr().iter().find(|line| line.contains("panicked at")) {
                bail!("a panic in the {role}: {panic}");
            }
        }
        Ok(())
    }

    /// Prints and counts the cases of the client until it has exited.
    fn count_cases(&mut self, label: &str, client: &mut Process) -> Result<()> {
        let deadline = Instant::now() + CLIENT_TIMEOUT;
        let (mut passed, mut failed, mut summary) = (0, 0, None);
        while let Some(line) = client.read_line(deadline)? {
            match parse_line(&line) {
                Line::Passed => {
                    self.passed += 1;
                    passed += 1;
                }
                Line::Failed => {
                    self.failed += 1;
                    failed += 1;
                }
                Line::Summary(reported_passed, reported_failed) => {
                    summary = Some((reported_passed, reported_failed));
                    // CI expects one summary in the whole output: that of `print`.
                    continue;
                }
                Line::Other => {}
            }
            println!("{label}: {line}");
        }
        let status = client.exit(deadline)?;
        ensure!(summary.is_some(), "the client exited without a summary ({status})");
        ensure!(
            summary == Some((passed, failed)),
            "the client's summary is {summary:?}, but {passed} cases passed and {failed} failed"
        );
        ensure!(passed > 0, "the client ran no case");
        ensure!(
            status.success() == (failed == 0),
            "the client exited with {status} after {failed} failures"
        );
        Ok(())
    }
}

fn add_log(logs: &mut Vec<String>, role: &str, process: &Process) {
    let stderr = process.stderr();
    let skipped = stderr.len().saturating_sub(LOG_LINES);
    if skipped > 0 {
        logs.push(format!("{role} log: ({skipped} earlier lines are not shown)"));
    }
    logs.extend(stderr[skipped..].iter().map(|line| format!("{role} log: {line}")));
}

fn parse_line(line: &str) -> Line {
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
    fn lines_of_clients_are_parsed() {
        assert_eq!(parse_line("ok echo of nothing (1 ms)"), Line::Passed);
        assert_eq!(parse_line("FAILED echo: 3 passed, 4 failed"), Line::Failed);
        assert_eq!(parse_line("12 passed, 3 failed"), Line::Summary(12, 3));
        for other in
            ["skipped merged block meta: came with Spark 3.2", "okay", "", "x passed, 3 failed"]
        {
            assert_eq!(parse_line(other), Line::Other, "{other}");
        }
    }

    /// Runs two shell scripts as the peers and returns the passed and failed cases.
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
    fn pair_counts_the_cases_of_the_client_and_one_for_itself() {
        assert_eq!(run_scripts(SERVER, "echo ok a; echo ok b; echo 2 passed, 0 failed"), (3, 0));
        assert_eq!(
            run_scripts(SERVER, "echo ok a; echo FAILED b; echo 1 passed, 1 failed; exit 1"),
            (2, 1)
        );
    }

    #[test]
    fn pair_fails_if_a_process_misbehaves() {
        // The client prints no summary, a wrong summary, no case, or exits with a wrong status.
        assert_eq!(run_scripts(SERVER, "echo ok a"), (1, 1));
        assert_eq!(run_scripts(SERVER, "echo ok a; echo 2 passed, 0 failed"), (1, 1));
        assert_eq!(run_scripts(SERVER, "echo 0 passed, 0 failed"), (0, 1));
        assert_eq!(run_scripts(SERVER, "echo ok a; echo 1 passed, 0 failed; exit 1"), (1, 1));
        // The server panics, exits with an error, or does not listen.
        let client = "echo ok a; echo 1 passed, 0 failed";
        assert_eq!(
            run_scripts("echo thread main panicked at x >&2; echo LISTENING 7; cat", client),
            (1, 1)
        );
        assert_eq!(run_scripts("echo LISTENING 7; cat; exit 3", client), (1, 1));
        assert_eq!(run_scripts("echo no port free", client), (0, 1));
    }
}

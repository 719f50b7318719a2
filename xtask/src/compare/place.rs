//! The placement of processes: unrestricted, on one core, or in a network namespace.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::process::Process;

const SET_UP_TIMEOUT: Duration = Duration::from_secs(20);

/// The placement of the processes of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Without restrictions.
    Free,
    /// Both processes on the first core with two worker threads each.
    ///
    /// This excludes the time in which an idle core wakes up.
    Pinned,
    /// In a network namespace whose loopback uses cubic, if the system allows it.
    Cubic,
}

/// The script that sets up the loopback of a new network namespace with cubic.
///
/// The namespace exists until the stdin of the script ends.
const CUBIC: &str = "ip link set lo up && \
    for to in 127.0.0.0/8 127.0.0.1; do \
        ip route replace local $to dev lo table local proto kernel scope host src 127.0.0.1 \
            congctl cubic || exit 1; \
    done; echo READY; exec cat";

/// Changes commands so that they run in their places.
pub(crate) struct Places {
    cubic: Option<Process>,
}

impl Places {
    /// Creates the network namespace, if the system allows it.
    pub(crate) fn new() -> Self {
        Self {
            cubic: Self::cubic()
                .inspect_err(|why| eprintln!("cannot create a loopback with cubic: {why:#}"))
                .ok(),
        }
    }

    fn cubic() -> Result<Process> {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", CUBIC]);
        let mut namespace = Process::start("unshare -n", &mut command)?;
        let ready = namespace.read_line(Instant::now() + SET_UP_TIMEOUT)?;
        if ready.is_none() {
            namespace.exit(Instant::now() + SET_UP_TIMEOUT)?;
        }
        ensure!(ready.is_some(), "{}", namespace.stderr().join("; "));
        Ok(namespace)
    }

    /// Returns the congestion control of [`Place::Cubic`].
    pub(crate) fn congestion_control(&self) -> String {
        const DEFAULT: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
        match &self.cubic {
            Some(_) => "cubic".to_owned(),
            None => std::fs::read_to_string(DEFAULT).unwrap_or_default().trim().to_owned(),
        }
    }

    /// Returns `command`, changed so that it runs in `place`.
    pub(crate) fn command_in(&self, place: Place, command: Command) -> Command {
        match (place, &self.cubic) {
            (Place::Pinned, _) => {
                let mut pinned = with_prefix(&["taskset", "-c", "0"], &command);
                pinned.env("TOKIO_WORKER_THREADS", "2");
                pinned
            }
            (Place::Cubic, Some(namespace)) => with_prefix(
                &["nsenter", &format!("--net=/proc/{}/ns/net", namespace.id())],
                &command,
            ),
            _ => command,
        }
    }
}

/// Returns `command` with `words` in front of it.
fn with_prefix(words: &[&str], command: &Command) -> Command {
    let mut whole = Command::new(words[0]);
    whole.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    whole
}

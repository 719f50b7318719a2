//! Where processes run: freely, on one core, or over a loopback of their own.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::process::Process;

const SET_UP_LIMIT: Duration = Duration::from_secs(20);

/// The condition of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// As it comes.
    Free,
    /// Both processes on the first core, with two workers each, so that no idle core has to wake
    /// up.
    Pinned,
    /// Over a loopback that uses cubic, if this machine allows it.
    Cubic,
}

/// The routes of a new network namespace, so that its loopback uses cubic whatever the machine's
/// default is. It lives until stdin ends.
const CUBIC: &str = "ip link set lo up && \
    for to in 127.0.0.0/8 127.0.0.1; do \
        ip route replace local $to dev lo table local proto kernel scope host src 127.0.0.1 congctl cubic || exit 1; \
    done; echo READY; exec cat";

/// Puts commands into their places.
pub(crate) struct Places {
    cubic: Option<Process>,
}

impl Places {
    /// Sets up what the machine allows.
    pub(crate) fn new() -> Self {
        Self {
            cubic: Self::cubic()
                .inspect_err(|why| eprintln!("no loopback with cubic: {why:#}"))
                .ok(),
        }
    }

    fn cubic() -> Result<Process> {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", CUBIC]);
        let mut namespace = Process::start("unshare -n", &mut command)?;
        let ready = namespace.line(Instant::now() + SET_UP_LIMIT)?;
        if ready.is_none() {
            namespace.exit(Instant::now() + SET_UP_LIMIT)?;
        }
        ensure!(ready.is_some(), "{}", namespace.stderr().join("; "));
        Ok(namespace)
    }

    /// Which congestion control [`Place::Cubic`] has.
    pub(crate) fn congestion_control(&self) -> String {
        const DEFAULT: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
        match &self.cubic {
            Some(_) => "cubic".to_owned(),
            None => std::fs::read_to_string(DEFAULT).unwrap_or_default().trim().to_owned(),
        }
    }

    /// `command` in its place.
    pub(crate) fn put(&self, place: Place, command: Command) -> Command {
        match (place, &self.cubic) {
            (Place::Pinned, _) => {
                let mut pinned = behind(&["taskset", "-c", "0"], &command);
                pinned.env("TOKIO_WORKER_THREADS", "2");
                pinned
            }
            (Place::Cubic, Some(namespace)) => {
                behind(&["nsenter", &format!("--net=/proc/{}/ns/net", namespace.id())], &command)
            }
            _ => command,
        }
    }
}

fn behind(words: &[&str], command: &Command) -> Command {
    let mut whole = Command::new(words[0]);
    whole.args(&words[1..]).arg(command.get_program()).args(command.get_args());
    whole
}

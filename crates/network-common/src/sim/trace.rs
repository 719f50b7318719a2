//! [`Trace`]: the events of a simulation, and a hash of them.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// An event on the network, with lengths and no bytes, because some bytes are random keys.
#[derive(Debug, Hash)]
pub(super) enum TraceEvent {
    Connected { id: u64, client: SocketAddr, server: SocketAddr },
    Written { id: u64, end: usize, count: usize },
    Read { id: u64, end: usize, count: usize },
    ReadEnd { id: u64, end: usize },
    Reset { id: u64 },
    Closed { id: u64, end: usize },
    Fault { name: &'static str, from: IpAddr, to: IpAddr },
    Note(String),
}

impl fmt::Display for TraceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = |end: &usize| if *end == 0 { "client" } else { "server" };
        match self {
            Self::Connected { id, client, server } => {
                write!(f, "connection {id}: {client} connected to {server}")
            }
            Self::Written { id, end, count } => {
                write!(f, "connection {id}: {} wrote {count} bytes", role(end))
            }
            Self::Read { id, end, count } => {
                write!(f, "connection {id}: {} read {count} bytes", role(end))
            }
            Self::ReadEnd { id, end } => {
                write!(f, "connection {id}: {} read the end of the stream", role(end))
            }
            Self::Reset { id } => write!(f, "connection {id}: reset"),
            Self::Closed { id, end } => write!(f, "connection {id}: {} closed", role(end)),
            Self::Fault { name, from, to } if from == to => write!(f, "fault: {name} {from}"),
            Self::Fault { name, from, to } => write!(f, "fault: {name} from {from} to {to}"),
            Self::Note(text) => f.write_str(text),
        }
    }
}

/// The hash of all events, and their texts if these are recorded.
#[derive(Default)]
pub(super) struct Trace {
    hasher: DefaultHasher,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// Keeps the text of every event from now on.
    pub(super) fn record_lines(&mut self) {
        self.lines.get_or_insert_default();
    }

    pub(super) fn add(&mut self, at: Duration, event: &TraceEvent) {
        (at, event).hash(&mut self.hasher);
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>12.6} s  {event}", at.as_secs_f64()));
        }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lines.clone().unwrap_or_default()
    }
}

//! The jobs of the criterion groups, shared by this workspace and `benches/peers`.

use bench_protocol::{Case, Job};

/// Returns the name and the job of each echo row.
#[must_use]
pub fn echoes(bytes: usize) -> [(&'static str, Job); 5] {
    let job = Job { bytes, ..Job::new(Case::Echo) };
    [
        ("1", job),
        ("16", Job { window: 16, ..job }),
        ("128", Job { window: 128, ..job }),
        ("64_tasks", Job { tasks: 64, ..job }),
        ("8_connections_x16", Job { connections: 8, window: 16, ..job }),
    ]
}

/// Returns the group, the name and the job of each row of local actors.
#[must_use]
pub fn local() -> [(&'static str, &'static str, Job); 5] {
    let (send, ask) = (Job { bytes: 0, ..Job::new(Case::Send) }, Job::new(Case::Ask));
    [
        ("send_local", "1_producer", send),
        ("send_local", "4_producers", Job { tasks: 4, ..send }),
        ("send_local", "4_producers_to_1000", Job { tasks: 4, population: 1000, ..send }),
        ("ask_local", "1", ask),
        ("ask_local", "128", Job { window: 128, ..ask }),
    ]
}

/// Returns the name and the job of each row of large bodies.
#[must_use]
pub fn bodies(case: Case) -> [(&'static str, Job); 3] {
    [("1MiB", 1 << 20), ("4MiB", 4 << 20), ("16MiB", 16 << 20)]
        .map(|(name, bytes)| (name, Job { bytes, window: 4, ..Job::new(case) }))
}

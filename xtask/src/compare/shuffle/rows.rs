//! The shuffles, and the rows that read them.

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// A shuffle whose blocks have one length.
pub(super) struct Blocks {
    pub(super) bytes: usize,
    pub(super) maps: usize,
    /// The number of blocks of each map.
    pub(super) reducers: usize,
}

pub(super) const LARGE: Blocks = Blocks { bytes: 4 * MIB, maps: 64, reducers: 1 };
pub(super) const MEDIUM: Blocks = Blocks { bytes: 200 * KIB, maps: 400, reducers: 1 };
pub(super) const SMALL: Blocks = Blocks { bytes: 20 * KIB, maps: 1000, reducers: 16 };

/// A read that is measured.
pub(super) struct ReadRow {
    pub(super) id: &'static str,
    pub(super) blocks: Blocks,
    /// The number of reducers that read at the same time.
    pub(super) reducers: usize,
    /// The shuffle is read once, instead of until the time has passed.
    pub(super) is_short: bool,
}

const fn row(id: &'static str, blocks: Blocks, reducers: usize) -> ReadRow {
    ReadRow { id, blocks, reducers, is_short: false }
}

/// The rows of services.
pub(super) const READ_ROWS: [ReadRow; 4] = [
    row("shuffle-4m", LARGE, 1),
    row("shuffle-200k", MEDIUM, 1),
    row("shuffle-20k", SMALL, 1),
    row("shuffle-20k-16", SMALL, 16),
];

/// The rows of block clients.
pub(super) const CLIENT_ROWS: [ReadRow; 3] = [
    row("client-4m", LARGE, 1),
    ReadRow { is_short: true, ..row("client-4m-short", LARGE, 1) },
    row("client-20k", SMALL, 1),
];

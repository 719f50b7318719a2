//! The place between socket and frames where ciphers sit.

use crate::error::BoxError;

/// Transforms the bytes of one direction of a connection, statefully and in order: a cipher, say.
///
/// While filters are installed, files are read into memory instead of being sent by the kernel.
pub trait ByteFilter: Send {
    /// Takes in all of `input` and appends what it yields to `output`, which may be less (the rest is held back until more
    /// arrives) or more.
    ///
    /// # Errors
    /// End the connection.
    fn transform(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(), BoxError>;

    /// Of the sealing direction: this side sends nothing more. Appends what tells the peer so. By default nothing does.
    fn finish(&mut self, output: &mut Vec<u8>) {
        let _ = output;
    }

    /// Of the opening direction: whether the peer has told that it sends nothing more.
    fn end_mark(&self) -> EndMark {
        EndMark::Unknown
    }
}

/// Those of both directions of a connection.
pub(crate) struct Filters {
    pub(crate) seal: Box<dyn ByteFilter>,
    pub(crate) open: Box<dyn ByteFilter>,
}

/// Whether sealed bytes say where they end, so that it is noticed when somebody cuts them off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndMark {
    /// They do not: they end with the connection.
    Unknown,
    /// They do, but the mark has not come yet.
    Missing,
    /// It has come.
    Seen,
}

/// Two filters as one: all that leaves `first` passes through `then`.
pub(crate) struct Stack {
    first: Box<dyn ByteFilter>,
    then: Box<dyn ByteFilter>,
}

impl Stack {
    /// `then` alone if there is no `first`, and the other way round.
    pub(crate) fn of(
        first: Option<Box<dyn ByteFilter>>,
        then: Option<Box<dyn ByteFilter>>,
    ) -> Option<Box<dyn ByteFilter>> {
        match (first, then) {
            (Some(first), Some(then)) => Some(Box::new(Self { first, then })),
            (one, other) => one.or(other),
        }
    }
}

impl ByteFilter for Stack {
    fn transform(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(), BoxError> {
        let mut between = Vec::with_capacity(input.len());
        self.first.transform(input, &mut between)?;
        self.then.transform(&between, output)
    }

    fn finish(&mut self, output: &mut Vec<u8>) {
        let mut between = Vec::new();
        self.first.finish(&mut between);
        // One that fails has no last words.
        if self.then.transform(&between, output).is_ok() {
            self.then.finish(output);
        }
    }

    fn end_mark(&self) -> EndMark {
        // What lies closer to the socket says it for both.
        self.first.end_mark()
    }
}

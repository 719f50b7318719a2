//! The place between socket and frames where ciphers sit.

use std::io;

use crate::error::BoxError;

/// Transforms the bytes of one direction of a connection, statefully and in order: a cipher, say.
///
/// While filters are installed, files are read into memory instead of being sent by the kernel.
pub trait ByteFilter: Send {
    /// Takes in all of `input` and appends what it yields to `output`, which may be less (the rest
    /// is held back until more arrives) or more.
    ///
    /// # Errors
    /// End the connection; nothing of `output` is used then.
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError>;

    /// The same into memory of its own.
    ///
    /// # Errors
    /// Those of [`transform`](Self::transform).
    fn transform_to_vec(&mut self, input: &[u8]) -> Result<Vec<u8>, BoxError> {
        FilterOutput::collect(|output| self.transform(input, output))
    }

    /// Of the sealing direction: this side sends nothing more. Appends what tells the peer so. By
    /// default nothing does.
    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let _ = output;
    }

    /// Of the opening direction: whether the peer has told that it sends nothing more.
    fn close_notify(&self) -> CloseNotify {
        CloseNotify::Unsupported
    }
}

/// Where a filter leaves what it yields: in a place that is provided, while what comes next fits in
/// there whole, and behind that in a buffer that grows. What either held before is overwritten, not
/// cleared first: that costs as much as a copy.
#[derive(Debug)]
pub struct FilterOutput<'a> {
    place: &'a mut [u8],
    placed: usize,
    buffer: &'a mut Vec<u8>,
    buffered: usize,
}

impl<'a> FilterOutput<'a> {
    pub(crate) fn new(place: &'a mut [u8], buffer: &'a mut Vec<u8>) -> Self {
        Self { place, placed: 0, buffer, buffered: 0 }
    }

    /// All that `write` leaves.
    pub(crate) fn collect<E>(
        write: impl FnOnce(&mut FilterOutput<'_>) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let mut buffer = Vec::new();
        let mut output = FilterOutput::new(&mut [], &mut buffer);
        write(&mut output)?;
        let (_, length) = output.lengths();
        buffer.truncate(length);
        Ok(buffer)
    }

    /// How many bytes are in the place, and how many in the buffer.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        (self.placed, self.buffered)
    }

    /// Has `write` leave the next bytes at the front of room for `length`, whose content is
    /// arbitrary; it returns how many.
    ///
    /// # Errors
    /// Those of `write`; nothing is left then.
    pub fn append<E>(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        if self.buffered == 0 && length <= self.place.len() - self.placed {
            self.placed += write(&mut self.place[self.placed..][..length])?.min(length);
            return Ok(());
        }
        let end = self.buffered + length;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffered += write(&mut self.buffer[self.buffered..end])?.min(length);
        Ok(())
    }

    /// Appends a copy of `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let Ok(()) = self.append(bytes.len(), |room| {
            room.copy_from_slice(bytes);
            Ok::<_, std::convert::Infallible>(bytes.len())
        });
    }
}

/// Takes everything.
impl io::Write for FilterOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Those of both directions of a connection.
pub(crate) struct FilterPair {
    pub(crate) seal_filter: Box<dyn ByteFilter>,
    pub(crate) open_filter: Box<dyn ByteFilter>,
}

/// Whether sealed bytes say where they end, so that it is noticed when somebody cuts them off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseNotify {
    /// They do not: they end with the connection.
    Unsupported,
    /// They do, but the mark has not come yet.
    Pending,
    /// It has come.
    Received,
}

/// Two filters as one: all that leaves `first` passes through `then`.
pub(crate) struct FilterChain {
    first: Box<dyn ByteFilter>,
    then: Box<dyn ByteFilter>,
}

impl FilterChain {
    /// `then` alone if there is no `first`, and the other way round.
    pub(crate) fn join(
        first: Option<Box<dyn ByteFilter>>,
        then: Option<Box<dyn ByteFilter>>,
    ) -> Option<Box<dyn ByteFilter>> {
        match (first, then) {
            (Some(first), Some(then)) => Some(Box::new(Self { first, then })),
            (one, other) => one.or(other),
        }
    }
}

impl ByteFilter for FilterChain {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        let between = self.first.transform_to_vec(input)?;
        self.then.transform(&between, output)
    }

    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let Ok(between) = FilterOutput::collect(|between| {
            self.first.finish(between);
            Ok::<_, std::convert::Infallible>(())
        });
        // One that fails has no last words.
        if self.then.transform(&between, output).is_ok() {
            self.then.finish(output);
        }
    }

    fn close_notify(&self) -> CloseNotify {
        // What lies closer to the socket says it for both.
        self.first.close_notify()
    }
}

//! Byte filters: transformations, such as ciphers, between the socket and the frames.

use std::io;

use crate::error::BoxError;

/// A stateful transformation of the bytes of one direction, such as a cipher.
///
/// [`TransportClient::install_filters`](crate::TransportClient::install_filters) installs a pair of
/// them. While filters are installed, files are read into memory instead of sent by the kernel.
///
/// ```
/// use network_common::{BoxError, ByteFilter, FilterOutput};
///
/// struct Xor(u8);
///
/// impl ByteFilter for Xor {
///     fn transform(
///         &mut self,
///         input: &[u8],
///         output: &mut FilterOutput<'_>,
///     ) -> Result<(), BoxError> {
///         output.append(input.len(), |target| {
///             target.iter_mut().zip(input).for_each(|(to, from)| *to = from ^ self.0);
///             Ok(input.len())
///         })
///     }
/// }
///
/// assert_eq!(Xor(1).transform_to_vec(b"abc")?, b"`cb");
/// # Ok::<(), BoxError>(())
/// ```
pub trait ByteFilter: Send {
    /// Transforms all of `input` and appends the result to `output`.
    ///
    /// The result may be shorter than the input, if the filter holds bytes back until more arrive,
    /// or longer.
    ///
    /// # Errors
    /// An error closes the connection, which then does not use `output`.
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError>;

    /// Transforms all of `input` into a new vector.
    ///
    /// # Errors
    /// The same as [`transform`](Self::transform).
    fn transform_to_vec(&mut self, input: &[u8]) -> Result<Vec<u8>, BoxError> {
        FilterOutput::collect(|output| self.transform(input, output))
    }

    /// Appends the mark by which the peer recognizes the end of the sealed bytes.
    ///
    /// Called once on the filter of the sending direction. The default appends no bytes.
    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let _ = output;
    }

    /// Returns whether the mark of the peer's [`finish`](Self::finish) has arrived.
    ///
    /// Called on the filter of the receiving direction.
    fn close_notify(&self) -> CloseNotify {
        CloseNotify::Unsupported
    }
}

/// The output of a filter: a given slice first, then a growing buffer.
///
/// The bytes that the next [`append`](Self::append) may write go into the slice while they fit as a
/// whole, and into the buffer from then on. Neither is cleared first, because clearing costs as
/// much as a copy. The example of [`ByteFilter`] shows its use.
#[derive(Debug)]
pub struct FilterOutput<'a> {
    slice: &'a mut [u8],
    slice_len: usize,
    buffer: &'a mut Vec<u8>,
    buffer_len: usize,
}

impl<'a> FilterOutput<'a> {
    pub(crate) fn new(slice: &'a mut [u8], buffer: &'a mut Vec<u8>) -> Self {
        Self { slice, slice_len: 0, buffer, buffer_len: 0 }
    }

    /// Collects the output of `write` in a new vector.
    pub(crate) fn collect<E>(
        write: impl FnOnce(&mut FilterOutput<'_>) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let mut buffer = Vec::new();
        let mut output = FilterOutput::new(&mut [], &mut buffer);
        write(&mut output)?;
        let (_, buffer_len) = output.lengths();
        buffer.truncate(buffer_len);
        Ok(buffer)
    }

    /// Returns the number of bytes in the slice and the number of bytes in the buffer.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        (self.slice_len, self.buffer_len)
    }

    /// Appends the bytes that `write` writes to the front of a slice of `length` bytes.
    ///
    /// The slice has arbitrary content. `write` returns the number of bytes to append.
    ///
    /// # Errors
    /// Returns the error of `write`; no bytes are appended then.
    pub fn append<E>(
        &mut self,
        length: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        if self.buffer_len == 0 && length <= self.slice.len() - self.slice_len {
            self.slice_len += write(&mut self.slice[self.slice_len..][..length])?.min(length);
            return Ok(());
        }
        let end = self.buffer_len + length;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffer_len += write(&mut self.buffer[self.buffer_len..end])?.min(length);
        Ok(())
    }

    /// Appends a copy of `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let Ok(()) = self.append(bytes.len(), |target| {
            target.copy_from_slice(bytes);
            Ok::<_, std::convert::Infallible>(bytes.len())
        });
    }
}

/// Appends all bytes; never fails.
impl io::Write for FilterOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The filters of both directions of a connection.
pub(crate) struct FilterPair {
    pub(crate) seal_filter: Box<dyn ByteFilter>,
    pub(crate) open_filter: Box<dyn ByteFilter>,
}

/// The state of the mark at the end of the sealed bytes.
///
/// A missing mark shows that the bytes were truncated.
///
/// ```
/// # use network_common::{ByteFilter, CloseNotify};
/// fn is_complete(open_filter: &dyn ByteFilter) -> bool {
///     open_filter.close_notify() != CloseNotify::Pending
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseNotify {
    /// The protocol has no such mark; the bytes end with the connection.
    Unsupported,
    /// The mark has not arrived yet.
    Pending,
    /// The mark has arrived.
    Received,
}

/// Two filters as one: the output of `first` is the input of `second`.
pub(crate) struct FilterChain {
    first: Box<dyn ByteFilter>,
    second: Box<dyn ByteFilter>,
}

impl FilterChain {
    /// Joins two filters; returns the other one if one is `None`.
    pub(crate) fn join(
        first: Option<Box<dyn ByteFilter>>,
        second: Option<Box<dyn ByteFilter>>,
    ) -> Option<Box<dyn ByteFilter>> {
        match (first, second) {
            (Some(first), Some(second)) => Some(Box::new(Self { first, second })),
            (one, other) => one.or(other),
        }
    }
}

impl ByteFilter for FilterChain {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        let intermediate = self.first.transform_to_vec(input)?;
        self.second.transform(&intermediate, output)
    }

    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let Ok(intermediate) = FilterOutput::collect(|intermediate| {
            self.first.finish(intermediate);
            Ok::<_, std::convert::Infallible>(())
        });
        // A filter that has failed cannot seal its mark.
        if self.second.transform(&intermediate, output).is_ok() {
            self.second.finish(output);
        }
    }

    fn close_notify(&self) -> CloseNotify {
        // When opening, `first` is closer to the socket and detects truncation for both.
        self.first.close_notify()
    }
}

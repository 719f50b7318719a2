//! [`ByteFilter`] transforms the bytes between socket and frames, for example encrypts them.

use std::io;

use crate::error::BoxError;

/// A stateful transformation of the bytes of one direction, such as a cipher.
///
/// [`TransportClient::install_filters`](crate::TransportClient::install_filters) installs a filter
/// that seals the sent bytes and one that opens the received bytes. Files are then read into memory
/// instead of sent with `sendfile`.
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
    /// The result may be longer than the input. It may also be shorter, because a filter may hold
    /// bytes back until more arrive.
    ///
    /// # Errors
    /// An error closes the connection, and `output` is discarded.
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError>;

    /// Transforms the first record of `input`, or all of it; returns the number of bytes.
    ///
    /// Called instead of [`transform`](Self::transform) while a handshake may install a filter
    /// between this one and the socket. A filter without records transforms all bytes.
    ///
    /// # Errors
    /// The same as [`transform`](Self::transform).
    fn transform_record(
        &mut self,
        input: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<usize, BoxError> {
        self.transform(input, output)?;
        Ok(input.len())
    }

    /// Transforms all of `input` into a new vector.
    ///
    /// # Errors
    /// The same as [`transform`](Self::transform).
    fn transform_to_vec(&mut self, input: &[u8]) -> Result<Vec<u8>, BoxError> {
        FilterOutput::collect(|output| self.transform(input, output))
    }

    /// Appends the end mark, by which the peer detects the end of the bytes.
    ///
    /// Called once, when the connection closes, on the filter of the sending direction. The default
    /// appends no bytes.
    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let _ = output;
    }

    /// Returns the state of the end mark that the peer's [`finish`](Self::finish) appends.
    ///
    /// Called on the filter of the receiving direction.
    fn close_notify(&self) -> CloseNotify {
        CloseNotify::Unsupported
    }
}

/// The output of a filter: a slice of fixed size, followed by a growing buffer.
///
/// An [`append`](Self::append) writes to the slice if its whole length fits there, and otherwise to
/// the buffer. Once the buffer has bytes, all later ones follow there. The example of
/// [`ByteFilter`] shows the use.
#[derive(Debug)]
pub struct FilterOutput<'a> {
    slice: &'a mut [u8],
    /// Number of bytes written to the front of `slice`.
    slice_len: usize,
    /// Keeps old bytes behind `buffer_len`, because clearing them costs as much as a copy.
    buffer: &'a mut Vec<u8>,
    /// Number of bytes written to the front of `buffer`.
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

    /// Returns the numbers of bytes written to the slice and to the buffer.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        (self.slice_len, self.buffer_len)
    }

    /// Appends up to `length` bytes that `write` writes.
    ///
    /// `write` receives a slice of `length` bytes with arbitrary content, writes to its front, and
    /// returns the number of bytes to append.
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

/// Writes never fail and always accept all bytes.
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

/// The state of the end mark of the received bytes (`close_notify` in TLS).
///
/// If the connection ends without the mark, the bytes may have been truncated.
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
    /// The filter's protocol has no end mark, so truncation cannot be detected.
    Unsupported,
    /// The end mark has not arrived yet.
    Pending,
    /// The end mark has arrived.
    Received,
}

/// Two filters as one: the output of `first` is the input of `second`.
pub(crate) struct FilterChain {
    first: Box<dyn ByteFilter>,
    second: Box<dyn ByteFilter>,
}

impl FilterChain {
    /// Joins two filters, of which either or both may be missing.
    pub(crate) fn join(
        first: Option<Box<dyn ByteFilter>>,
        second: Option<Box<dyn ByteFilter>>,
    ) -> Option<Box<dyn ByteFilter>> {
        match (first, second) {
            (Some(first), Some(second)) => Some(Box::new(Self { first, second })),
            (first, second) => first.or(second),
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
        // `second` has no valid end mark after it failed to transform the one of `first`.
        if self.second.transform(&intermediate, output).is_ok() {
            self.second.finish(output);
        }
    }

    fn close_notify(&self) -> CloseNotify {
        // Only called on filters that open bytes. There `first` is closer to the socket, and an end
        // mark of it covers the bytes of both.
        match self.first.close_notify() {
            CloseNotify::Unsupported => self.second.close_notify(),
            known => known,
        }
    }
}

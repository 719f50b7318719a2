//! The field formats of messages: big-endian integers and length-prefixed strings.
//!
//! They are those of Spark's `Encoders`.

use bytes::BufMut;

use super::ProtocolError;

/// Reads fields from the front of a byte slice.
///
/// Every announced length is compared with the number of bytes left before memory is allocated.
/// The parameter `field` of its methods is the name of the field in the error text.
///
/// ```
/// use network_common::protocol::{FieldReader, put_string};
///
/// let mut bytes = Vec::new();
/// put_string("app-1", &mut bytes);
/// let mut reader = FieldReader::new(&bytes);
/// assert_eq!(reader.string("application id")?, "app-1");
/// assert_eq!(reader.remaining(), 0);
/// # Ok::<(), network_common::protocol::ProtocolError>(())
/// ```
#[derive(Debug, Clone)]
pub struct FieldReader<'a> {
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    /// Returns a reader that starts at the first of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the number of bytes that are not read yet.
    #[must_use]
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Returns the bytes that are not read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(super) fn take(
        &mut self,
        count: usize,
        field: &'static str,
    ) -> Result<&'a [u8], ProtocolError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => {
                Err(ProtocolError::Truncated { field, needed: count, available: self.rest.len() })
            }
        }
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ProtocolError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(ProtocolError::Truncated {
            field,
            needed: N,
            available: self.rest.len(),
        })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// Reads one signed byte.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`] if fewer bytes are left.
    pub fn byte(&mut self, field: &'static str) -> Result<i8, ProtocolError> {
        Ok(i8::from_be_bytes(self.array(field)?))
    }

    /// Reads a big-endian integer of 4 bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`] if fewer bytes are left.
    pub fn int(&mut self, field: &'static str) -> Result<i32, ProtocolError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    /// Reads a big-endian integer of 8 bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`] if fewer bytes are left.
    pub fn long(&mut self, field: &'static str) -> Result<i64, ProtocolError> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    /// Reads a 4-byte length and that number of bytes.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`] or [`ProtocolError::BadLength`] if fewer bytes are left.
    pub fn byte_array(&mut self, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let length = self.count(field, 1)?;
        self.take(length, field)
    }

    /// Reads a 4-byte length and that number of bytes of UTF-8.
    ///
    /// Invalid sequences are replaced, as Java does.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`] or [`ProtocolError::BadLength`] if fewer bytes are left.
    pub fn string(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        Ok(String::from_utf8_lossy(self.byte_array(field)?).into_owned())
    }

    /// Reads a count of elements and checks that `min_size` bytes are left for each of them.
    pub(super) fn count(
        &mut self,
        field: &'static str,
        min_size: usize,
    ) -> Result<usize, ProtocolError> {
        let length = self.int(field)?;
        let available = self.rest.len();
        match usize::try_from(length) {
            Ok(count) if count <= available / min_size => Ok(count),
            _ => Err(ProtocolError::BadLength { field, length, available }),
        }
    }
}

/// Writes a string as [`FieldReader::string`] reads it.
///
/// # Panics
/// If `text` is 2 GiB or longer: no frame can hold it.
pub fn put_string(text: &str, out: &mut impl BufMut) {
    put_byte_array(text.as_bytes(), out);
}

/// Writes a byte array as [`FieldReader::byte_array`] reads it.
///
/// # Panics
/// If `bytes` is 2 GiB or longer: no frame can hold it.
pub fn put_byte_array(bytes: &[u8], out: &mut impl BufMut) {
    out.put_i32(
        i32::try_from(bytes.len()).expect("a byte array of a message is shorter than 2 GiB"),
    );
    out.put_slice(bytes);
}

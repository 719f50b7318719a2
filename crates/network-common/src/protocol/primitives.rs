//! The field formats of messages: big-endian integers, length-prefixed strings, bitmaps.
//!
//! They are those of Spark's `Encoders`.

use bytes::{BufMut, Bytes};
use roaring::RoaringBitmap;

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

    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], ProtocolError> {
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

    /// Reads one bitmap in RoaringBitmap's portable format, which has no length prefix.
    ///
    /// # Errors
    /// [`ProtocolError::BadBitmap`] if the bytes are not in this format.
    pub fn bitmap(&mut self) -> Result<RoaringBitmap, ProtocolError> {
        let mut source = self.rest;
        let bitmap = RoaringBitmap::deserialize_from(&mut source)
            .map_err(|error| ProtocolError::BadBitmap(error.to_string()))?;
        self.rest = source;
        Ok(bitmap)
    }

    /// Reads a 4-byte count and that number of bitmaps.
    ///
    /// # Errors
    /// [`ProtocolError::Truncated`], [`ProtocolError::BadLength`] or [`ProtocolError::BadBitmap`].
    pub fn bitmap_array(&mut self) -> Result<Vec<RoaringBitmap>, ProtocolError> {
        let count = self.count("bitmap array", 8)?;
        (0..count).map(|_| self.bitmap()).collect()
    }

    /// Reads a count of elements and checks that `min_size` bytes are left for each of them.
    fn count(&mut self, field: &'static str, min_size: usize) -> Result<usize, ProtocolError> {
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

/// Writes a bitmap in the portable format, after run optimisation as in Spark.
///
/// # Errors
/// [`ProtocolError::Overflow`] if `out` has a fixed size and too little capacity; nothing is
/// written then.
pub fn put_bitmap(bitmap: &RoaringBitmap, out: &mut impl BufMut) -> Result<(), ProtocolError> {
    let mut optimised = bitmap.clone();
    optimised.optimize();
    let needed = optimised.serialized_size();
    let available = out.remaining_mut();
    if needed > available {
        return Err(ProtocolError::Overflow { field: "bitmap", needed, available });
    }
    optimised
        .serialize_into(out.writer())
        .map_err(|error| ProtocolError::BadBitmap(error.to_string()))
}

/// Writes a bitmap array as [`FieldReader::bitmap_array`] reads it.
///
/// # Errors
/// [`ProtocolError::Overflow`] if `out` has a fixed size and too little capacity.
///
/// # Panics
/// If there are 2^31 bitmaps or more.
pub fn put_bitmap_array(
    bitmaps: &[RoaringBitmap],
    out: &mut impl BufMut,
) -> Result<(), ProtocolError> {
    let available = out.remaining_mut();
    if available < 4 {
        return Err(ProtocolError::Overflow { field: "bitmap array", needed: 4, available });
    }
    out.put_i32(i32::try_from(bitmaps.len()).expect("fewer than 2^31 bitmaps"));
    bitmaps.iter().try_for_each(|bitmap| put_bitmap(bitmap, out))
}

/// Reads the `count` bitmaps in the body of a [`Message::MergedBlockMetaSuccess`].
///
/// # Errors
/// [`ProtocolError::BadBitmap`] if the bytes are not bitmaps in the portable format.
///
/// [`Message::MergedBlockMetaSuccess`]: super::Message::MergedBlockMetaSuccess
pub fn read_bitmaps(body: &Bytes, count: usize) -> Result<Vec<RoaringBitmap>, ProtocolError> {
    let mut reader = FieldReader::new(body);
    (0..count).map(|_| reader.bitmap()).collect()
}

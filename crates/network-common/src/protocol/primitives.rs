//! Java-compatible primitives of wire 3: big-endian integers, length-prefixed strings and arrays,
//! bitmaps.

use bytes::{BufMut, Bytes};
use roaring::RoaringBitmap;

use super::ProtocolError;

/// Checked reads from the front of a byte slice. No length is trusted before it is compared with
/// what is left.
#[derive(Debug, Clone)]
pub struct FieldReader<'a> {
    rest: &'a [u8],
}

impl<'a> FieldReader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// What is left.
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

    /// One byte, signed as in Java.
    pub fn byte(&mut self, field: &'static str) -> Result<i8, ProtocolError> {
        Ok(i8::from_be_bytes(self.array(field)?))
    }

    /// 4 bytes.
    pub fn int(&mut self, field: &'static str) -> Result<i32, ProtocolError> {
        Ok(i32::from_be_bytes(self.array(field)?))
    }

    /// 8 bytes.
    pub fn long(&mut self, field: &'static str) -> Result<i64, ProtocolError> {
        Ok(i64::from_be_bytes(self.array(field)?))
    }

    /// A 4-byte length and that many bytes.
    pub fn byte_array(&mut self, field: &'static str) -> Result<&'a [u8], ProtocolError> {
        let length = self.count(field, 1)?;
        self.take(length, field)
    }

    /// A 4-byte length and that many bytes of UTF-8; invalid sequences are replaced, as Java does.
    pub fn string(&mut self, field: &'static str) -> Result<String, ProtocolError> {
        Ok(String::from_utf8_lossy(self.byte_array(field)?).into_owned())
    }

    /// One bitmap in RoaringBitmap's portable format, which carries no length prefix.
    pub fn bitmap(&mut self) -> Result<RoaringBitmap, ProtocolError> {
        let mut source = self.rest;
        let bitmap = RoaringBitmap::deserialize_from(&mut source)
            .map_err(|error| ProtocolError::BadBitmap(error.to_string()))?;
        self.rest = source;
        Ok(bitmap)
    }

    /// A 4-byte count and that many bitmaps.
    pub fn bitmap_array(&mut self) -> Result<Vec<RoaringBitmap>, ProtocolError> {
        let count = self.count("bitmap array", 8)?;
        (0..count).map(|_| self.bitmap()).collect()
    }

    /// A count of elements of at least `element` bytes, checked against what is left before anyone
    /// allocates by it.
    fn count(&mut self, field: &'static str, element: usize) -> Result<usize, ProtocolError> {
        let length = self.int(field)?;
        let available = self.rest.len();
        match usize::try_from(length) {
            Ok(count) if count <= available / element => Ok(count),
            _ => Err(ProtocolError::BadLength { field, length, available }),
        }
    }
}

/// Writes a string as [`Reader::string`] reads it.
pub fn put_string(text: &str, out: &mut impl BufMut) {
    put_byte_array(text.as_bytes(), out);
}

/// Writes a byte array as [`Reader::byte_array`] reads it.
///
/// # Panics
/// If `bytes` is 2 GiB or longer: no frame can carry it.
pub fn put_byte_array(bytes: &[u8], out: &mut impl BufMut) {
    out.put_i32(
        i32::try_from(bytes.len()).expect("a byte array of the protocol is shorter than 2 GiB"),
    );
    out.put_slice(bytes);
}

/// Writes a bitmap in the portable format, run-optimised first as Spark does.
///
/// # Errors
/// [`ProtocolError::Overflow`] when `out` has a fixed size and no room; nothing is written then.
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

/// Writes a bitmap array as [`Reader::bitmap_array`] reads it.
///
/// # Errors
/// [`ProtocolError::Overflow`] when `out` has a fixed size and no room left.
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

/// The bitmaps of a merged-block-meta body: back to back, without a count (wire 2, type 0x0C).
///
/// # Errors
/// [`ProtocolError::BadBitmap`] when the bytes are something else.
pub fn read_bitmaps(body: &Bytes, count: usize) -> Result<Vec<RoaringBitmap>, ProtocolError> {
    let mut reader = FieldReader::new(body);
    (0..count).map(|_| reader.bitmap()).collect()
}

//! The bitmaps of merged shuffle blocks, in RoaringBitmap's portable format.

use bytes::{BufMut, Bytes};
use roaring::RoaringBitmap;

use super::{FieldReader, ProtocolError};

impl FieldReader<'_> {
    /// Reads one bitmap in RoaringBitmap's portable format, which has no length prefix.
    ///
    /// # Errors
    /// [`ProtocolError::BadBitmap`] if the bytes are not in this format.
    pub fn bitmap(&mut self) -> Result<RoaringBitmap, ProtocolError> {
        let mut source = self.rest();
        let bitmap = RoaringBitmap::deserialize_from(&mut source)
            .map_err(|error| ProtocolError::BadBitmap(error.to_string()))?;
        let used = self.remaining() - source.len();
        self.take(used, "bitmap")?;
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

//! Lists that stay in their encoded form, so that a decoded message is not larger than its bytes.

use std::borrow::Cow;
use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use network_common::protocol::{FieldReader, ProtocolError, put_string};

/// A list of strings, in the encoded form of Spark's `Encoders.StringArrays`.
///
/// A list of a million block ids needs only the bytes that it has on the wire. Invalid UTF-8 is
/// replaced when a string is read, as Java does.
///
/// ```
/// use network_shuffle::protocol::StringList;
///
/// let list = StringList::from_iter(["shuffle_0_0_0", "shuffle_0_1_0"]);
/// assert_eq!(list.len(), 2);
/// assert_eq!(list.iter().last().unwrap(), "shuffle_0_1_0");
/// ```
#[derive(Clone, Default)]
pub struct StringList {
    len: usize,
    /// The strings, each after its 4-byte length. All lengths were checked.
    encoded: Bytes,
}

impl StringList {
    /// Reads a count and that many strings from the front of `message`'s unread bytes.
    pub(super) fn read(
        message: &Bytes,
        reader: &mut FieldReader<'_>,
        field: &'static str,
    ) -> Result<Self, ProtocolError> {
        let len = read_count(reader, field, 4)?;
        let start = message.len() - reader.remaining();
        for _ in 0..len {
            reader.byte_array(field)?;
        }
        Ok(Self { len, encoded: message.slice(start..message.len() - reader.remaining()) })
    }

    /// Returns the number of strings.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the list has no strings.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the strings in order.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let mut reader = FieldReader::new(&self.encoded);
        (0..self.len)
            .map_while(move |_| reader.byte_array("string").ok())
            .map(String::from_utf8_lossy)
    }

    /// Returns the strings with their lengths, without the count.
    pub(super) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Removes and returns the first string.
    #[cfg(feature = "service")]
    pub(crate) fn pop_first(&mut self) -> Option<String> {
        self.len = self.len.checked_sub(1)?;
        let length = self.encoded.get_i32();
        let text = self.encoded.split_to(usize::try_from(length).ok()?);
        Some(String::from_utf8_lossy(&text).into_owned())
    }
}

impl<S: AsRef<str>> FromIterator<S> for StringList {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut encoded = Vec::new();
        let mut len = 0;
        for string in strings {
            put_string(string.as_ref(), &mut encoded);
            len += 1;
        }
        Self { len, encoded: encoded.into() }
    }
}

impl PartialEq for StringList {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Eq for StringList {}

impl fmt::Debug for StringList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_list(f, self.len, self.iter())
    }
}

/// A list of lists of integers: the reduce ids or chunk ids of a request, one list per map.
///
/// It stays in its encoded form, like [`StringList`].
///
/// ```
/// use network_shuffle::protocol::IntLists;
///
/// let reduce_ids = IntLists::from_iter([vec![0, 1], vec![3]]);
/// assert_eq!(reduce_ids.iter().collect::<Vec<_>>(), [vec![0, 1], vec![3]]);
/// assert_eq!(reduce_ids.total(), 3);
/// ```
#[derive(Clone, Default)]
pub struct IntLists {
    len: usize,
    total: usize,
    /// The lists, each after its 4-byte count. All counts were checked.
    encoded: Bytes,
}

impl IntLists {
    /// Reads a count and that many lists from the front of `message`'s unread bytes.
    pub(super) fn read(
        message: &Bytes,
        reader: &mut FieldReader<'_>,
        field: &'static str,
    ) -> Result<Self, ProtocolError> {
        let len = read_count(reader, field, 4)?;
        let start = message.len() - reader.remaining();
        let mut total = 0;
        for _ in 0..len {
            let count = read_count(reader, field, 4)?;
            for _ in 0..count {
                reader.int(field)?;
            }
            total += count;
        }
        let encoded = message.slice(start..message.len() - reader.remaining());
        Ok(Self { len, total, encoded })
    }

    /// Returns the number of lists.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no lists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the number of integers in all lists.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Returns the lists in order.
    pub fn iter(&self) -> impl Iterator<Item = Vec<i32>> {
        let mut rest = self.encoded.clone();
        (0..self.len).map(move |_| {
            let count = rest.get_i32();
            (0..count).map(|_| rest.get_i32()).collect()
        })
    }

    /// Returns the length of the lists in order, without allocating their integers.
    #[cfg(feature = "service")]
    pub(crate) fn lens(&self) -> impl Iterator<Item = usize> {
        let mut rest = self.encoded.clone();
        (0..self.len).map(move |_| {
            let count = usize::try_from(rest.get_i32()).unwrap_or_default();
            rest.advance(4 * count);
            count
        })
    }

    /// Returns the lists with their counts, without the count of lists.
    pub(super) fn encoded(&self) -> &Bytes {
        &self.encoded
    }

    /// Returns a cursor over the lists and their integers.
    #[cfg(feature = "service")]
    pub(crate) fn into_cursor(self) -> IntCursor {
        IntCursor { rest: self.encoded, left_in_list: 0 }
    }
}

/// A position in [`IntLists`].
#[cfg(feature = "service")]
#[derive(Debug, Clone)]
pub(crate) struct IntCursor {
    rest: Bytes,
    left_in_list: i32,
}

#[cfg(feature = "service")]
impl IntCursor {
    /// Starts the next list if the current one has no integer left; returns whether it did.
    pub(crate) fn start_list_if_done(&mut self) -> bool {
        let is_done = self.left_in_list == 0 && self.rest.len() >= 4;
        if is_done {
            self.left_in_list = self.rest.get_i32();
        }
        is_done
    }

    /// Returns the next integer of the current list.
    pub(crate) fn next_int(&mut self) -> Option<i32> {
        (self.left_in_list > 0 && self.rest.len() >= 4).then(|| {
            self.left_in_list -= 1;
            self.rest.get_i32()
        })
    }
}

impl FromIterator<Vec<i32>> for IntLists {
    fn from_iter<I: IntoIterator<Item = Vec<i32>>>(lists: I) -> Self {
        let mut encoded = Vec::new();
        let (mut len, mut total) = (0, 0);
        for list in lists {
            put_int_array(&list, &mut encoded);
            len += 1;
            total += list.len();
        }
        Self { len, total, encoded: encoded.into() }
    }
}

impl PartialEq for IntLists {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.encoded == other.encoded
    }
}

impl Eq for IntLists {}

impl fmt::Debug for IntLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_list(f, self.len, self.iter())
    }
}

/// Shows at most ten entries: a list can have millions.
fn debug_list(
    f: &mut fmt::Formatter<'_>,
    len: usize,
    entries: impl Iterator<Item = impl fmt::Debug>,
) -> fmt::Result {
    const SHOWN: usize = 10;
    f.debug_list().entries(entries.take(SHOWN)).finish()?;
    if len > SHOWN { write!(f, " and {} more", len - SHOWN) } else { Ok(()) }
}

/// Reads a count of elements and checks that `min_size` bytes are left for each of them.
pub(super) fn read_count(
    reader: &mut FieldReader<'_>,
    field: &'static str,
    min_size: usize,
) -> Result<usize, ProtocolError> {
    let length = reader.int(field)?;
    let available = reader.remaining();
    match usize::try_from(length) {
        Ok(count) if count <= available / min_size => Ok(count),
        _ => Err(ProtocolError::BadLength { field, length, available }),
    }
}

/// Writes a count and that many integers.
pub(super) fn put_int_array(ints: &[i32], out: &mut Vec<u8>) {
    out.put_i32(array_len(ints.len()));
    ints.iter().for_each(|int| out.put_i32(*int));
}

/// Returns the number of elements as it is written in front of them.
///
/// # Panics
/// If there are 2^31 elements or more.
pub(super) fn array_len(len: usize) -> i32 {
    i32::try_from(len).expect("an array of a message has fewer than 2^31 elements")
}

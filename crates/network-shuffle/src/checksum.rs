//! [`Checksum`], the checksums of shuffle blocks (Spark's `ShuffleChecksumHelper`).

/// The checksum algorithms of Spark 4; 3.x has the first two.
pub(crate) enum Checksum {
    Adler32(simd_adler32::Adler32),
    Crc32(crc32fast::Hasher),
    Crc32c(u32),
}

impl Checksum {
    /// Returns the checksum of no bytes; `None` if the algorithm is not known.
    pub(crate) fn new(algorithm: &str) -> Option<Self> {
        match algorithm {
            "ADLER32" => Some(Self::Adler32(simd_adler32::Adler32::new())),
            "CRC32" => Some(Self::Crc32(crc32fast::Hasher::new())),
            "CRC32C" => Some(Self::Crc32c(0)),
            _ => None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Adler32(checksum) => checksum.write(bytes),
            Self::Crc32(checksum) => checksum.update(bytes),
            Self::Crc32c(checksum) => *checksum = crc32c::crc32c_append(*checksum, bytes),
        }
    }

    pub(crate) fn finish(self) -> u32 {
        match self {
            Self::Adler32(checksum) => checksum.finish(),
            Self::Crc32(checksum) => checksum.finalize(),
            Self::Crc32c(checksum) => checksum,
        }
    }
}

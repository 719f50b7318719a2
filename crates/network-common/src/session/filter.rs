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
}

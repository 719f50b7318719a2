//! Other libraries behind the traits of `benches`.
//!
//! Each library has the fastest set-up that its API reasonably allows, which is documented in its
//! module.

pub mod actix;
pub mod flight;
pub mod hyper;
pub mod kameo;
pub mod ractor;
pub mod tarpc;
pub mod tonic;

use bytes::Bytes;

/// The maximum length of a served body.
const MAX_BODY: usize = 16 << 20;

/// Returns `size` bytes of a block of memory that all responses share.
fn memory(size: usize) -> Bytes {
    static MEMORY: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    MEMORY.get_or_init(|| vec![7; MAX_BODY].into()).slice(..size)
}

//! Other libraries behind the traits of `benches`, each as favourably set up as its API reasonably
//! allows; what was chosen stands at the place.

pub mod actix;
pub mod flight;
pub mod hyper;
pub mod kameo;
pub mod ractor;
pub mod tarpc;
pub mod tonic;

use bytes::Bytes;

/// The longest body that is served.
const LONGEST: usize = 16 << 20;

/// `size` bytes of memory that is used again for every answer.
fn memory(size: usize) -> Bytes {
    static MEMORY: std::sync::OnceLock<Bytes> = std::sync::OnceLock::new();
    MEMORY.get_or_init(|| vec![7; LONGEST].into()).slice(..size)
}

//! Bodies of messages, in memory or in files, and the buffers that they are received into.

mod file_segment;
mod managed_buffer;
mod pool;
mod small_body;

pub(crate) use file_segment::FileSegment;
pub use file_segment::open_real_path;
pub(crate) use managed_buffer::Content;
pub use managed_buffer::ManagedBuffer;
pub(crate) use pool::BufferPool;
pub(crate) use small_body::copy_to_bytes;

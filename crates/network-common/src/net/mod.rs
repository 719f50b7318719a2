//! Byte streams below a connection: TCP sockets, and the in-memory network that replaces them.

mod dial;
mod happy_eyeballs;
mod io_stream;
mod listener;
mod lookup;
mod memory_network;
mod memory_stream;
pub(crate) mod socket_options;

pub(crate) use dial::dial;
pub(crate) use io_stream::{IoStream, ReadHalf, WriteHalf};
pub(crate) use listener::Listener;
pub(crate) use memory_network::MemoryListener;
pub use memory_network::MemoryNetwork;

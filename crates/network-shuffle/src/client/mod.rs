//! The client that registers executors, and fetches blocks from services and executors.
//!
//! | type | role |
//! |---|---|
//! | [`ExternalBlockStoreClient`] | sends the requests of an application |
//! | [`BlockFetch`] | the blocks of one location, as a stream |
//! | [`ShuffleBlockStream`] | the blocks of many locations, within the limits of a reader |

mod block_fetch;
mod block_stream;
mod conf;
mod error;
mod governor;
mod location;
mod one_for_one;
mod open_request;
mod read_ahead;
mod retrying;
mod store;
mod store_client;
mod target;

pub use block_fetch::BlockFetch;
pub use block_stream::{FetchedBlock, ShuffleBlockStream};
pub use conf::BlockClientConf;
pub use error::BlockError;
pub use location::BlockLocation;
pub use store_client::{ExternalBlockStoreClient, block_checksum};
pub use target::FetchTarget;

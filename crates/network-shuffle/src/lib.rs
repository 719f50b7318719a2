//! Apache Spark's external shuffle service for Rust, byte-compatible with Spark 2.4 to 4.x.
//!
//! Executors write the blocks of a shuffle into files, and register the directories of these files
//! with the service of their host. The service sends the blocks to the executors that read the
//! shuffle, also when the executor that wrote them has ended. `docs/shuffle-service.md` in the
//! repository describes the program `shuffle-service` for operators.
//!
//! | type | role |
//! |---|---|
//! | [`protocol`] | the messages of Spark's block transfer protocol, without I/O |
//! | `ShuffleService` | the service; `ShuffleServiceConf` has its settings under Spark's names |
//! | `client` | the block client: `ExternalBlockStoreClient` registers executors and fetches blocks |
//!
//! ```
//! # #[cfg(feature = "service")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), network_common::BoxError> {
//! use network_common::{NoOpRpcHandler, TransportConf, TransportContext};
//! use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo};
//! use network_shuffle::{ShuffleService, ShuffleServiceConf};
//!
//! let settings = [
//!     ("spark.shuffle.service.host", "127.0.0.1"),
//!     ("spark.shuffle.service.port", "0"),
//!     ("spark.shuffle.service.db.enabled", "false"),
//! ];
//! let conf = ShuffleServiceConf::from_settings(settings)?;
//! let service = ShuffleService::start(&conf, TransportConf::new("shuffle"), None).await?;
//!
//! let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
//! let client = context.create_client_factory().create_client(service.local_addr()).await?;
//! let registration = BlockTransferMessage::RegisterExecutor {
//!     app_id: "app-1".to_owned(),
//!     exec_id: "0".to_owned(),
//!     info: ExecutorShuffleInfo::new(["/data/blockmgr-0"], 64, "sort"),
//! };
//! client.send_rpc(registration.encode()).await?;
//! assert_eq!(service.metrics().registered_executors, 1);
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "service"))]
//! # fn main() {}
//! ```
//!
//! # Features
//!
//! The service runs on Unix systems.
//!
//! | feature | adds |
//! |---|---|
//! | none | the protocol |
//! | `service` | the service as a library |
//! | `client` (default) | the block client |
//! | `binary` (default) | the program `shuffle-service` |

#![forbid(unsafe_code)]

#[cfg(any(feature = "client", feature = "service"))]
mod checksum;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "service")]
mod conf;
#[cfg(any(feature = "client", feature = "service"))]
mod conf_error;
#[cfg(feature = "service")]
mod metrics;
pub mod protocol;
#[cfg(feature = "service")]
mod registry;
#[cfg(feature = "service")]
mod request_error;
#[cfg(feature = "service")]
mod resolver;
#[cfg(feature = "service")]
mod secrets;
#[cfg(feature = "service")]
mod service;

#[cfg(feature = "service")]
pub use conf::ShuffleServiceConf;
#[cfg(any(feature = "client", feature = "service"))]
pub use conf_error::ConfError;
#[cfg(feature = "service")]
pub use metrics::ServiceMetricsSnapshot;
#[cfg(feature = "service")]
pub use registry::StoreError;
#[cfg(feature = "service")]
pub use service::{ServiceError, ShuffleService, ShutdownReport};

//! Refs as fields of messages.

use prost::Message;

use crate::endpoint::{RpcEndpointRef, RpcMessage, local_only_error};
use crate::error::{ErrorKind, RpcError};

/// A ref as a field of a message: `rpc_core.EndpointRef` of `rpc_core.proto`.
///
/// `EndpointRef::try_from(&endpoint)` makes one from a typed ref. The receiver calls
/// [`RpcEnv::resolve`](crate::RpcEnv::resolve) to make a typed ref of it again. The counterpart in
/// Spark is a serialized `NettyRpcEndpointRef`.
///
/// A ref to an endpoint of an environment that does not listen is usable by the peers of that
/// environment, over their connection and as long as it lasts. Such a ref cannot be forwarded to
/// a third environment.
///
/// The ref carries the incarnation of its environment, if that is known. No later incarnation at
/// the same address handles messages that are sent over it.
///
/// ```
/// # use rpc_core::{EndpointRef, RpcEndpointRef, RpcEnv, RpcError};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::HelloMessage;
/// # fn example(worker: RpcEndpointRef<HelloMessage>, env: RpcEnv) -> Result<(), RpcError> {
/// let field = EndpointRef::try_from(&worker)?;
/// // In the process that receives the message:
/// let worker: RpcEndpointRef<HelloMessage> = env.resolve(&field)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct EndpointRef {
    #[prost(string, tag = "1")]
    pub(crate) address: String,
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) services: Vec<String>,
    #[prost(fixed64, tag = "4")]
    pub(crate) incarnation: u64,
}

impl EndpointRef {
    /// Returns the endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the address of the endpoint's environment as `host:port`.
    ///
    /// Empty if the environment does not listen.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl<M: RpcMessage> TryFrom<&RpcEndpointRef<M>> for EndpointRef {
    type Error = RpcError;

    /// # Errors
    ///
    /// [`ErrorKind::LocalOnly`] if `M` has no schema. [`ErrorKind::InvalidAddress`] if the endpoint
    /// is in another environment that does not listen.
    fn try_from(endpoint: &RpcEndpointRef<M>) -> Result<Self, RpcError> {
        if M::SERVICES.is_empty() {
            return Err(local_only_error());
        }
        let address = endpoint.address().address();
        if address.is_none() && !endpoint.is_local() {
            let text = format!(
                "the ref to {} cannot be forwarded: the endpoint's environment does not listen, \
                 so only its direct peers reach it",
                endpoint.address()
            );
            return Err(
                RpcError::new(ErrorKind::InvalidAddress, text).with_peer(endpoint.address())
            );
        }
        Ok(Self {
            address: address.map(ToString::to_string).unwrap_or_default(),
            name: endpoint.name().to_owned(),
            services: M::SERVICES.iter().map(|&service| service.to_owned()).collect(),
            incarnation: endpoint.incarnation(),
        })
    }
}

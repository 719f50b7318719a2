//! Refs inside messages.

use prost::Message;

use crate::endpoint::RpcEndpointRef;
use crate::endpoint::{RpcMessage, local_only};
use crate::error::{ErrorKind, RpcError};

/// A ref as a field of a message: `rpc_core.EndpointRef` of `rpc_core.proto`. (`spark://` addresses
/// in messages are its counterpart in Spark, where a ref is serialized: `rpc 6.3`.)
///
/// Made from a typed ref with `EndpointRef::try_from(&endpoint)`; the reader makes a typed ref of
/// it again with [`RpcEnv::resolve`](crate::RpcEnv::resolve).
///
/// An endpoint of an environment that does not listen can be told of too: who gets its ref from
/// that environment reaches it over the connection that environment made, as long as it lasts.
/// Passing such a ref on is an error, as the third has no such connection.
///
/// It names the run of the environment as far as that is known, so that no other run takes the
/// endpoint's messages: see [`RpcEnv::resolve`](crate::RpcEnv::resolve).
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
    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its environment listens, as host:port. Empty if it does not.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl<M: RpcMessage> TryFrom<&RpcEndpointRef<M>> for EndpointRef {
    type Error = RpcError;

    /// # Errors
    ///
    /// [`ErrorKind::LocalOnly`] if the endpoint's messages cannot leave the process;
    /// [`ErrorKind::InvalidAddress`] if it is in another environment that does not listen.
    fn try_from(endpoint: &RpcEndpointRef<M>) -> Result<Self, RpcError> {
        if M::SERVICES.is_empty() {
            return Err(local_only());
        }
        let address = endpoint.address().address();
        if address.is_none() && !endpoint.is_local() {
            let text = format!(
                "{} cannot be passed on: its environment does not listen, so only who is connected to it reaches it",
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

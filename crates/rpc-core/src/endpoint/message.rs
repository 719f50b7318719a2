//! What a type must be to be sent to an endpoint. rpc-build writes these implementations.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use crate::endpoint::{Caller, RpcCallContext};
use crate::error::{ErrorKind, RpcError};
use crate::method::{Method, split};
use crate::peer::{InboundMessage, PeerConnection, RemoteAsk};
use crate::wire::{self, DecodeBuf, EncodeBuf, MessageHeader};

/// What an endpoint receives: usually the enum that rpc-build makes from a service, with a variant
/// per rpc.
///
/// An enum written by hand works too. With an empty implementation it is for one process only: its
/// contents need not be encodable, and a lookup of it at another environment is refused. It may
/// also unite generated enums, for an endpoint that serves several services, by naming all their
/// [`SERVICES`](Self::SERVICES) and passing each request on to the one whose
/// [service](IncomingRequest::service) it is.
///
/// ```
/// use rpc_core::{RpcCallContext, RpcMessage, RpcRequest};
///
/// // For one process only: the answer is a file, which cannot be encoded.
/// enum Files {
///     Open(Open, RpcCallContext<std::fs::File>),
/// }
/// struct Open(std::path::PathBuf);
///
/// impl RpcMessage for Files {}
/// impl RpcRequest<Files> for Open {
///     type Reply = std::fs::File;
///     fn into_message(self, context: RpcCallContext<std::fs::File>) -> Files {
///         Files::Open(self, context)
///     }
/// }
/// ```
pub trait RpcMessage: Sized + Send + 'static {
    /// Full names of the `.proto` services whose requests [`decode`](Self::decode) understands;
    /// none if the message never leaves the process.
    const SERVICES: &'static [&'static str] = &[];

    /// Makes the message from a request that came over the network. Its service is one of
    /// [`SERVICES`](Self::SERVICES).
    ///
    /// # Errors
    ///
    /// The method is unknown, or the bytes are not its request. The asker gets the error.
    fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        Err(request.unknown_method())
    }
}

/// One request of the endpoints that receive `M`: it knows the type of its answer.
pub trait RpcRequest<M: RpcMessage>: Sized + Send + 'static {
    /// What the endpoint answers.
    type Reply: Send + 'static;

    /// Which rpc of which service this is; `None` if it never leaves the process.
    const METHOD: Option<Method> = None;

    /// There is no answer: to [ask](crate::RpcEndpointRef::ask) this does not compile.
    const ONE_WAY: bool = false;

    /// Puts the request and the handle for its answer together. Runs under the inbox's lock: it
    /// should do no more.
    fn into_message(self, context: RpcCallContext<Self::Reply>) -> M;

    /// Writes the request's bytes.
    ///
    /// # Errors
    ///
    /// The request cannot travel.
    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        let _ = body;
        Err(local_only())
    }

    /// Reads the answer's bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not a reply.
    fn decode_reply(body: DecodeBuf) -> Result<Self::Reply, RpcError> {
        let _ = body;
        Err(local_only())
    }
}

pub(crate) fn local_only() -> RpcError {
    RpcError::new(
        ErrorKind::LocalOnly,
        "this message has no schema, so it cannot leave the process",
    )
}

/// A request that came over the network, not yet decoded.
pub struct IncomingRequest<'a> {
    header: &'a MessageHeader<'a>,
    /// The header's slices are parts of it.
    frame: &'a Bytes,
    connection: &'a PeerConnection,
    /// Taken by the context. `None` for a one-way message.
    ask: &'a mut Option<Box<RemoteAsk>>,
}

impl fmt::Debug for IncomingRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingRequest").field("path", &self.header.path).finish_non_exhaustive()
    }
}

impl<'a> IncomingRequest<'a> {
    pub(crate) fn new(message: &'a mut InboundMessage<'_>) -> Self {
        let InboundMessage { header, frame, connection, ask, .. } = message;
        Self { header, frame, connection, ask }
    }

    /// The path of the rpc: `/hello.Hello/SayHi`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.header.path
    }

    /// The full name of the service: `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &str {
        split(self.header.path).0
    }

    /// The name of the rpc: `SayHi`.
    #[must_use]
    pub fn method(&self) -> &str {
        split(self.header.path).1
    }

    /// Reads the request message.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the bytes are no `T`.
    pub fn decode<T: Message + Default>(&mut self) -> Result<T, RpcError> {
        T::decode(self.frame.slice_ref(self.header.body)).map_err(|e| {
            let text = format!("the request {:.400} cannot be decoded: {e}", self.header.path);
            RpcError::new(ErrorKind::Decode, text)
        })
    }

    /// The context that replies. To be called once, after [`decode`](Self::decode).
    pub fn context<T: Message + 'static>(&mut self) -> RpcCallContext<T> {
        let (caller, sender) = match self.ask.take() {
            Some(ask) => (Caller::Remote(ask, wire::encode_reply::<T>), None),
            None => (Caller::None, Some(self.connection.address().clone())),
        };
        RpcCallContext { caller, sender }
    }

    /// The error for a method that the service does not have: the schemas differ.
    #[must_use]
    pub fn unknown_method(&self) -> RpcError {
        // The path is cut: a peer may send a text of any length.
        let (service, method) = (self.service(), self.method());
        let text =
            format!("the service {service:.200} has no method {method:.200}: the schemas differ");
        RpcError::new(ErrorKind::Rejected, text)
    }
}

//! What a type must be to be sent to an endpoint. rpc-build writes these implementations.

use bytes::Bytes;
use prost::Message;

use crate::address::RpcAddress;
use crate::call_context::{RemoteReply, RpcCallContext};
use crate::error::{ErrorKind, RpcError};
use crate::method::Method;
use crate::origin::RemoteAsk;
use crate::wire::{self, IncomingBody, OutgoingBody, Request};

/// What an endpoint receives: usually the enum that rpc-build makes from a service, with a variant per rpc.
///
/// An enum written by hand works too. With an empty implementation it is for one process only: its contents need
/// not be encodable, and a lookup of it at another environment is refused. It may also unite generated enums, for
/// an endpoint that serves several services, by naming all their [`SERVICES`](Self::SERVICES) and passing each
/// request on to the one whose [service](IncomingRequest::service) it is.
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
    /// Full names of the `.proto` services whose requests [`decode`](Self::decode) understands; none if the
    /// message never leaves the process.
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

    /// Puts the request and the handle for its answer together. Runs under the inbox's lock: it should do no more.
    fn into_message(self, context: RpcCallContext<Self::Reply>) -> M;

    /// Writes the request's bytes.
    ///
    /// # Errors
    ///
    /// The request cannot travel.
    fn encode(&self, body: &mut OutgoingBody<'_>) -> Result<(), RpcError> {
        let _ = body;
        Err(local_only())
    }

    /// Reads the answer's bytes.
    ///
    /// # Errors
    ///
    /// The bytes are not a reply.
    fn decode_reply(body: IncomingBody) -> Result<Self::Reply, RpcError> {
        let _ = body;
        Err(local_only())
    }
}

pub(crate) fn local_only() -> RpcError {
    RpcError::new(ErrorKind::LocalOnly, "this message has no schema, so it cannot leave the process")
}

/// A request that came over the network, not yet decoded.
#[derive(Debug)]
pub struct IncomingRequest<'a> {
    request: &'a Request<'a>,
    /// What its texts and body are parts of.
    frame: &'a Bytes,
    /// Taken by the context.
    sender: Option<RpcAddress>,
    /// Left in place if decoding fails, so that the dispatcher can tell the asker why.
    reply: &'a mut Option<Box<RemoteReply>>,
}

impl<'a> IncomingRequest<'a> {
    /// `reply` is none for a one-way message.
    pub(crate) fn new(
        request: &'a Request<'a>,
        frame: &'a Bytes,
        sender: RpcAddress,
        reply: &'a mut Option<Box<RemoteReply>>,
    ) -> Self {
        Self { request, frame, sender: Some(sender), reply }
    }

    pub(crate) fn ask(&self) -> Option<RemoteAsk> {
        self.reply.as_deref().map(RemoteReply::ask)
    }

    /// Full name of the service: `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &str {
        self.request.service
    }

    /// Name of the rpc: `SayHi`.
    #[must_use]
    pub fn method(&self) -> &str {
        self.request.method
    }

    /// Reads the request message.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the bytes are no `T`.
    pub fn decode<T: Message + Default>(&mut self) -> Result<T, RpcError> {
        T::decode(self.frame.slice_ref(self.request.body)).map_err(|e| {
            let text = format!(
                "the request {}/{:.200} cannot be decoded: {e}",
                self.request.service, self.request.method
            );
            RpcError::new(ErrorKind::Decode, text)
        })
    }

    /// The handle for the answer. To be called once, after [`decode`](Self::decode).
    pub fn context<T: Message + 'static>(&mut self) -> RpcCallContext<T> {
        let sender = self.sender.take();
        match self.reply.take() {
            Some(reply) => RpcCallContext::remote(reply, wire::encode_value::<T>, sender),
            None => RpcCallContext::nobody(sender),
        }
    }

    /// The error for a method that the service does not have: the peer's schema is newer, or another one.
    #[must_use]
    pub fn unknown_method(&self) -> RpcError {
        // The peer may have written anything.
        let text = format!(
            "the service {} has no method {:.200}: the schemas differ",
            self.request.service, self.request.method
        );
        RpcError::new(ErrorKind::NotDelivered, text)
    }
}

//! The traits of messages and requests, which rpc-build implements, and undecoded requests.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use crate::endpoint::{Caller, RpcCallContext};
use crate::error::{ErrorKind, RpcError};
use crate::method::{Method, split_path};
use crate::peer::{InboundMessage, PeerConnection, RemoteAsk};
use crate::peer_text::peer_name;
use crate::wire::{self, DecodeBuf, EncodeBuf, MessageHeader};

/// The type of all messages that an endpoint receives.
///
/// Usually this is the enum that rpc-build makes from a service, with one variant per rpc. An enum
/// written by hand works, too:
///
/// * With an empty implementation, messages stay in one environment. Their contents need not be
///   encodable, and lookups in other environments fail with
///   [`ErrorKind::LocalOnly`](crate::ErrorKind::LocalOnly).
/// * An enum of generated enums serves several services. It lists all of their
///   [`SERVICES`](Self::SERVICES), and its [`decode`](Self::decode) selects the inner enum by
///   [`IncomingRequest::service`].
///
/// ```
/// use rpc_core::{RpcCallContext, RpcMessage, RpcRequest};
///
/// // For one process only, because the reply is an open file.
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
    /// The full names of the `.proto` services whose requests [`decode`](Self::decode) accepts.
    ///
    /// Empty if the messages stay in one process.
    const SERVICES: &'static [&'static str] = &[];

    /// Decodes a request from the network, of one of the [`SERVICES`](Self::SERVICES).
    ///
    /// # Errors
    ///
    /// The method is unknown, or the bytes are not its request. The caller receives the error.
    fn decode(request: IncomingRequest<'_>) -> Result<Self, RpcError> {
        Err(request.unknown_method())
    }
}

/// One kind of request to endpoints that receive `M`, with the type of its reply.
///
/// rpc-build implements it for the request type of each rpc. See [`RpcMessage`] for an example by
/// hand.
pub trait RpcRequest<M: RpcMessage>: Sized + Send + 'static {
    /// The type of the reply.
    type Reply: Send + 'static;

    /// The rpc of this request; `None` if the request stays in one process.
    const METHOD: Option<Method> = None;

    /// Is true if the request has no reply. To [ask](crate::RpcEndpointRef::ask) it does not
    /// compile.
    const ONE_WAY: bool = false;

    /// Is true if executing the request twice has the effect of executing it once.
    ///
    /// Then [`ask_with`](crate::RpcEndpointRef::ask_with) repeats it also if it may have been
    /// executed. rpc-build sets it for an rpc with
    /// `option idempotency_level = IDEMPOTENT;` or `NO_SIDE_EFFECTS` in its `.proto` file.
    const IDEMPOTENT: bool = false;

    /// Makes the message of the request and its reply context.
    #[must_use]
    fn into_message(self, context: RpcCallContext<Self::Reply>) -> M;

    /// Appends the encoded request to `body`.
    ///
    /// # Errors
    ///
    /// The request cannot be encoded. By default: [`ErrorKind::LocalOnly`].
    fn encode(&self, body: &mut EncodeBuf<'_>) -> Result<(), RpcError> {
        let _ = body;
        Err(local_only_error())
    }

    /// Decodes the reply.
    ///
    /// # Errors
    ///
    /// The bytes are not a reply. By default: [`ErrorKind::LocalOnly`].
    fn decode_reply(body: DecodeBuf) -> Result<Self::Reply, RpcError> {
        let _ = body;
        Err(local_only_error())
    }
}

pub(crate) fn local_only_error() -> RpcError {
    RpcError::new(
        ErrorKind::LocalOnly,
        "the message has no schema, so it cannot be sent to another process",
    )
}

/// A request from the network that has not been decoded yet.
///
/// [`RpcMessage::decode`] receives it. Generated code uses it as follows:
///
/// ```
/// # use rpc_core::{IncomingRequest, RpcCallContext, RpcError, RpcMessage};
/// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
/// # use hello::{Greeting, SayHi};
/// enum Greeter {
///     SayHi(SayHi, RpcCallContext<Greeting>),
/// }
/// impl RpcMessage for Greeter {
///     const SERVICES: &'static [&'static str] = &["hello.Hello"];
///
///     fn decode(mut request: IncomingRequest<'_>) -> Result<Self, RpcError> {
///         match request.path() {
///             "/hello.Hello/SayHi" => Ok(Self::SayHi(request.decode()?, request.context())),
///             _ => Err(request.unknown_method()),
///         }
///     }
/// }
/// ```
pub struct IncomingRequest<'a> {
    header: &'a MessageHeader<'a>,
    /// The slices of `header` borrow from it.
    frame: &'a Bytes,
    connection: &'a PeerConnection,
    /// Taken by `context`. `None` for a one-way message.
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

    /// Returns the path of the rpc, such as `/hello.Hello/SayHi`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.header.path
    }

    /// Returns the full name of the service, such as `hello.Hello`.
    #[must_use]
    pub fn service(&self) -> &str {
        split_path(self.header.path).0
    }

    /// Returns the name of the rpc, such as `SayHi`.
    #[must_use]
    pub fn method(&self) -> &str {
        split_path(self.header.path).1
    }

    /// Decodes the request message.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the bytes are not a `T`.
    pub fn decode<T: Message + Default>(&mut self) -> Result<T, RpcError> {
        T::decode(self.frame.slice_ref(self.header.body)).map_err(|error| {
            let text = format!("the request {} cannot be decoded", peer_name(self.header.path));
            RpcError::new(ErrorKind::Decode, text).with_decode_error(error)
        })
    }

    /// Returns the reply context.
    ///
    /// Call it once, after [`decode`](Self::decode) has succeeded. Further contexts discard their
    /// replies.
    pub fn context<T: Message + 'static>(&mut self) -> RpcCallContext<T> {
        let (caller, sender) = match self.ask.take() {
            Some(ask) => (Caller::Remote(ask, wire::encode_reply::<T>), None),
            None => (Caller::None, Some(self.connection.address().clone())),
        };
        RpcCallContext { caller, sender }
    }

    /// Makes the error for a method that the service does not have.
    #[must_use]
    pub fn unknown_method(&self) -> RpcError {
        let (service, method) = (peer_name(self.service()), peer_name(self.method()));
        let text = format!(
            "the service {service} has no method {method}: caller and endpoint were built from \
             different schemas"
        );
        RpcError::new(ErrorKind::Rejected, text)
    }
}

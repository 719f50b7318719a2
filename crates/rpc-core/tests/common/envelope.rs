//! Hand-written messages of `proto/rpc_envelope.proto`, for tests that act as a peer without the
//! crate's own encoder.

use prost::Message;

/// `rpc_core.envelope.RoutedMessage`.
#[derive(Clone, PartialEq, Message)]
pub struct RoutedMessage {
    #[prost(fixed32, tag = "1")]
    pub route: u32,
    #[prost(fixed64, tag = "2")]
    pub timeout_us: u64,
    #[prost(string, tag = "3")]
    pub path: String,
    #[prost(string, tag = "4")]
    pub traceparent: String,
    #[prost(string, tag = "5")]
    pub endpoint: String,
    #[prost(uint32, tag = "6")]
    pub blocked_by: u32,
    #[prost(bytes = "vec", tag = "15")]
    pub body: Vec<u8>,
}

/// `rpc_core.envelope.Hello`.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub min_version: u32,
    #[prost(uint32, tag = "2")]
    pub max_version: u32,
    #[prost(uint64, tag = "3")]
    pub features: u64,
    #[prost(fixed64, tag = "4")]
    pub incarnation: u64,
    #[prost(string, tag = "5")]
    pub address: String,
    #[prost(uint32, tag = "6")]
    pub max_routes: u32,
}

/// `rpc_core.envelope.Credit`; notices that contain only a route use its first field.
#[derive(Clone, PartialEq, Message)]
pub struct Credit {
    #[prost(uint32, tag = "1")]
    pub route: u32,
    #[prost(uint64, tag = "2")]
    pub messages: u64,
    #[prost(uint64, tag = "3")]
    pub bytes: u64,
    #[prost(bool, tag = "4")]
    pub keeps_open: bool,
}

/// `rpc_core.envelope.Cancel`.
#[derive(Clone, PartialEq, Message)]
pub struct Cancel {
    #[prost(int64, tag = "1")]
    pub request_id: i64,
}

/// `rpc_core.envelope.Undelivered`.
#[derive(Clone, PartialEq, Message)]
pub struct Undelivered {
    #[prost(uint32, tag = "1")]
    pub route: u32,
    #[prost(string, tag = "2")]
    pub path: String,
    #[prost(bytes = "vec", tag = "3")]
    pub failure: Vec<u8>,
}

/// `rpc_core.envelope.Notice`. At most one field is set.
#[derive(Clone, PartialEq, Message)]
pub struct Notice {
    #[prost(message, tag = "1")]
    pub hello: Option<Hello>,
    #[prost(message, tag = "2")]
    pub credit: Option<Credit>,
    #[prost(message, tag = "3")]
    pub close_route: Option<Credit>,
    #[prost(message, tag = "4")]
    pub route_closed: Option<Credit>,
    #[prost(message, tag = "5")]
    pub cancel: Option<Cancel>,
    #[prost(message, tag = "6")]
    pub undelivered: Option<Undelivered>,
}

impl Notice {
    /// Encodes the notice as the body of a one-way message on route 0.
    pub fn envelope(&self) -> Vec<u8> {
        RoutedMessage { body: self.encode_to_vec(), ..RoutedMessage::default() }.encode_to_vec()
    }
}

/// Returns the Hello of a client-mode environment.
pub fn hello(incarnation: u64) -> Notice {
    let hello = Hello {
        min_version: 1,
        max_version: 1,
        incarnation,
        max_routes: 65_536,
        ..Hello::default()
    };
    Notice { hello: Some(hello), ..Notice::default() }
}

/// Returns a message; a non-empty `endpoint` opens the route to that endpoint.
pub fn message(route: u32, endpoint: &str, path: &str, body: &[u8]) -> RoutedMessage {
    RoutedMessage {
        route,
        path: path.to_owned(),
        endpoint: endpoint.to_owned(),
        body: body.to_vec(),
        ..RoutedMessage::default()
    }
}

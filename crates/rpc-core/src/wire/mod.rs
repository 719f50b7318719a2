//! Encodes and decodes the envelope (`proto/rpc_envelope.proto`). Bodies are copied at most once.

mod buf;
mod encode_block;
mod header;
mod notice;
mod response;

pub use buf::{DecodeBuf, EncodeBuf};
pub(crate) use buf::{EncodedMessage, encode_message};
pub(crate) use header::MessageHeader;
pub(crate) use notice::encode_notice;
pub(crate) use response::{
    check_size, decode_failure, decode_reply, encode_failure, encode_rejection, encode_reply,
    rejection,
};

/// Code that `cargo xtask generate` made from `proto/rpc_envelope.proto`.
pub(crate) mod proto {
    include!("generated/rpc_core.envelope.rs");
}

/// The lowest and the highest version of the protocol that this crate supports.
pub(crate) const VERSIONS: (u32, u32) = (1, 1);

/// The name of the endpoint that serves lookups (Spark's `RpcEndpointVerifier.NAME`).
pub(crate) const ENDPOINT_VERIFIER: &str = "endpoint-verifier";

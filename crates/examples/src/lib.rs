//! The messages of the example programs, which are in the folder `examples` of this crate.
//!
//! Their code is generated from the schemas in `proto/` and committed, so that the examples compile
//! no code generator. Another program generates its messages in `build.rs`, and includes them with
//! [`rpc_core::include_proto!`]; README.md shows it.

#![forbid(unsafe_code)]

/// The messages of `hello.proto`.
pub mod hello {
    include!("generated/hello.rs");
}

/// The messages of `heartbeat.proto`.
pub mod heartbeat {
    include!("generated/heartbeat.rs");
}

/// The messages of `standalone.proto`.
pub mod standalone {
    include!("generated/standalone.rs");
}

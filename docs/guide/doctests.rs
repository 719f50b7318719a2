//! Compiles and runs the code of every chapter of the guide.
//!
//! `cargo test --doc -p guide --all-features` tests all chapters. Without the feature `all`, the
//! chapters that need optional features of the crates are left out.

use rpc_core::{EndpointContext, RpcError, ThreadSafeRpcEndpoint};

/// The messages of the first program.
#[allow(missing_docs)]
pub mod hello {
    rpc_core::include_proto!("hello");
}

/// The messages of a master and its workers.
#[allow(missing_docs)]
pub mod cluster {
    rpc_core::include_proto!("cluster");
}

use hello::{Greeting, HelloMessage, Name};

/// The endpoint of the first program, for the chapters that do not show one.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Hello {
    /// The number of greetings.
    pub greeted: u32,
}

impl ThreadSafeRpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn receive(
        &mut self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let HelloMessage::SayHi(Name { name }, call) = message;
        self.greeted += 1;
        call.reply(Greeting { text: format!("Hi {name}, you are number {}", self.greeted) })
    }
}

/// Creates the files of the TLS example below `tls` in a new current directory.
///
/// # Panics
///
/// If a file cannot be written.
#[cfg(feature = "all")]
#[must_use]
pub fn example_certificates() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::env::set_current_dir(folder.path()).expect("the directory exists");
    let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a key");
    std::fs::create_dir("tls").expect("the directory is writable");
    for (name, content) in [
        ("cert.pem", identity.cert.pem()),
        ("ca.pem", identity.cert.pem()),
        ("key.pem", identity.signing_key.serialize_pem()),
        ("secret", "0123456789abcdef0123456789abcdef".to_owned()),
    ] {
        std::fs::write(format!("tls/{name}"), content).expect("the directory is writable");
    }
    folder
}

macro_rules! chapters {
    ($($name:ident: $file:literal,)*) => {
        $(#[cfg(doctest)] #[doc = include_str!($file)] mod $name {})*
    };
}

macro_rules! chapters_with_features {
    ($($name:ident: $file:literal,)*) => {
        $(#[cfg(all(doctest, feature = "all"))] #[doc = include_str!($file)] mod $name {})*
    };
}

chapters! {
    introduction: "src/introduction.md",
    first_program: "src/first-program.md",
    endpoints: "src/endpoints.md",
    errors: "src/errors.md",
    retries: "src/retries.md",
    deadlines: "src/deadlines.md",
    back_pressure: "src/back-pressure.md",
    refs: "src/refs.md",
    testing: "src/testing.md",
    shutdown: "src/shutdown.md",
    bulk: "src/bulk.md",
    operations: "src/operations.md",
    jvm: "src/jvm.md",
    settings: "src/settings.md",
    troubleshooting: "src/troubleshooting.md",
}

chapters_with_features! {
    files: "src/files.md",
    security: "src/security.md",
    metrics: "src/metrics.md",
}

//! The driver of one connection: the only code that reads from and writes to its socket.
//!
//! One task per connection ([`ConnectionDriver`]) reads, calls handlers and writes, so responses to
//! requests of one read leave in one write. Servers and client factories create it. Other tasks run
//! only for calls of the stream manager, for uploads, and for files outside of the page cache.

mod bulk_server;
mod close;
mod driver;
mod file_body;
mod handshake;
mod idle_timer;
mod poll_read;
mod reader;
mod requests;
mod resources;
mod responses;
mod sealer;
mod sendfile;
mod upload;
mod writer;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;

pub(crate) use self::driver::ConnectionDriver;
pub(crate) use self::handshake::Handshaker;
#[cfg(feature = "tls")]
pub(crate) use self::handshake::{Handshake, HandshakeOutput};
pub(crate) use self::resources::ConnectionResources;
use crate::client::SharedConnection;
use crate::conf::TransportConf;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::log_limit::log_limited;
use crate::protocol::{ProtocolError, TLS};

/// The failure of requests that arrive while the server drains its connections.
const SHUTTING_DOWN: &str = "the server is shutting down";

/// A fatal alert of TLS, `unexpected_message`, with which a peer that speaks TLS knows the reason.
pub(crate) const TLS_ALERT: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 10];

/// Creates the error of an I/O operation: "`operation` `peer` failed".
fn io_error(peer: SocketAddr, operation: &str, error: impl Into<BoxError>) -> TransportError {
    TransportError::new(ErrorKind::Io, format!("{operation} {peer} failed"))
        .with_peer(peer)
        .with_source(error)
}

/// Creates the error of a system call on the socket: "`operation` `peer` failed".
fn socket_error(
    peer: SocketAddr,
    operation: &str,
    error: io::Error,
    conf: &TransportConf,
) -> TransportError {
    let Some(timeout) = conf.tcp_user_timeout().filter(|_| error.kind() == io::ErrorKind::TimedOut)
    else {
        return io_error(peer, operation, error);
    };
    let text = format!(
        "{operation} {peer} failed: it did not take what it was sent for {timeout:?}. This timeout \
         is controlled by {}",
        conf.setting_name("io.tcpUserTimeout")
    );
    TransportError::new(ErrorKind::Timeout, text).with_peer(peer).with_source(error)
}

/// Creates the error of a peer that violates the protocol.
fn protocol_error(shared: &SharedConnection, error: ProtocolError) -> TransportError {
    let peer = shared.peer;
    let (kind, text) = match error {
        ProtocolError::ForeignProtocol(TLS) => (
            ErrorKind::Tls,
            format!(
                "{peer} speaks TLS and this side does not: does the peer require TLS \
                 (spark.ssl.rpc.enabled=true at both ends)?"
            ),
        ),
        _ => (ErrorKind::Protocol, format!("malformed data from {peer}")),
    };
    TransportError::new(kind, text).with_peer(peer).with_source(error)
}

/// Calls a user's callback; logs a panic, which has no caller to report it to.
fn catch_panic(callback: &str, call: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(call)).is_err() {
        log_panic(callback);
    }
}

fn log_panic(callback: &str) {
    log_limited!(|suppressed| tracing::error!(suppressed, callback, "a callback panicked"));
}

/// Runs a user's future; turns a panic into an error.
async fn catch_panic_async<T>(
    code: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match AssertUnwindSafe(code).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err("the handler panicked".into()),
    }
}

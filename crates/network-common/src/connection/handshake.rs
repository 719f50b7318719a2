//! The handshake of connections that are secured before the first frame (TLS).

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::AsyncReadExt;

use super::ConnectionDriver;
use crate::address::PeerAddress;
use crate::client::SharedConnection;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::session::ByteFilter;

/// Size of the read buffer; most handshakes fit.
const READ_SIZE: usize = 8 << 10;

/// Starts the handshakes of one side of a context.
pub(crate) trait Handshaker: Send + Sync {
    /// Starts the handshake with `peer`; waits if too many handshakes are running.
    fn start<'a>(
        &'a self,
        peer: &'a PeerAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Handshake>, TransportError>>;

    /// Returns the timeout of a whole handshake, and the name of its setting.
    fn timeout(&self) -> (Duration, &'static str);
}

/// One side of a handshake, without I/O.
pub(crate) trait Handshake: Send {
    /// Processes bytes of the peer (none in the first step) and appends bytes to send.
    ///
    /// Returns true when the handshake is complete.
    ///
    /// # Errors
    /// The handshake has failed. The appended bytes are sent nevertheless: they contain the reason.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, BoxError>;

    /// Returns the result of a complete handshake.
    fn into_output(self: Box<Self>) -> HandshakeOutput;
}

/// The result of a handshake.
pub(crate) struct HandshakeOutput {
    pub(crate) seal_filter: Box<dyn ByteFilter>,
    pub(crate) open_filter: Box<dyn ByteFilter>,
    /// Opened bytes that the peer has sent after its part of the handshake.
    pub(crate) leftover: Vec<u8>,
}

impl ConnectionDriver {
    /// Secures the connection before [`run`](Self::run).
    ///
    /// # Errors
    /// The handshake failed, timed out, or the connection was closed by this side. The caller then
    /// calls [`abort_handshake`](Self::abort_handshake).
    pub(crate) async fn handshake(
        &mut self,
        handshaker: &dyn Handshaker,
        peer: &PeerAddress,
    ) -> Result<(), TransportError> {
        let (timeout, setting) = handshaker.timeout();
        let shared = Arc::clone(&self.shared);
        let attempt = async {
            let handshake = handshaker.start(peer).await?;
            self.run_handshake(handshake, peer).await
        };
        tokio::select! {
            biased;
            result = tokio::time::timeout(timeout, attempt) => result.unwrap_or_else(|elapsed| {
                let text = format!(
                    "the TLS handshake with {peer} took longer than {timeout:?}. This timeout is \
                     controlled by {setting}"
                );
                let error = TransportError::new(ErrorKind::ConnectTimeout, text);
                Err(error.with_peer(peer).with_source(elapsed))
            }),
            closed = wait_for_close_request(&shared) => Err(closed),
        }
    }

    /// Closes a connection whose handshake failed.
    ///
    /// The handler was not notified of the connection. The caller counts the failure.
    pub(crate) async fn abort_handshake(mut self: Box<Self>, error: &TransportError) {
        self.close_with(error);
        if error.kind() == ErrorKind::Tls {
            // The last bytes of the handshake contain the reason; a reset could destroy them.
            self.linger().await;
        }
    }

    async fn run_handshake(
        &mut self,
        mut handshake: Box<dyn Handshake>,
        peer: &PeerAddress,
    ) -> Result<(), TransportError> {
        let handshake_error = |error: BoxError| {
            let text = format!("the TLS handshake with {peer} failed");
            TransportError::new(ErrorKind::Tls, text).with_peer(peer).with_source(error)
        };
        let interrupted_error = |error: BoxError| {
            let text =
                format!("the TLS handshake with {peer} was interrupted: does the peer speak TLS?");
            TransportError::new(ErrorKind::Io, text).with_peer(peer).with_source(error)
        };
        let mut input = vec![0; READ_SIZE];
        let mut received = 0;
        loop {
            let mut output = Vec::new();
            let step = handshake.step(&input[..received], &mut output);
            let written = self.writer.write_raw(&output).await;
            let is_complete = step.map_err(handshake_error)?;
            written.map_err(|error| interrupted_error(error.into()))?;
            if is_complete {
                break;
            }
            let read = self.reader.io.read(&mut input).await;
            received = read.map_err(|error| interrupted_error(error.into()))?;
            if received == 0 {
                return Err(interrupted_error("the peer closed the connection".into()));
            }
            self.resources.count_received(&self.shared, received);
        }
        let HandshakeOutput { seal_filter, open_filter, leftover } = handshake.into_output();
        self.writer.install_filter(seal_filter);
        self.reader.install_filter(open_filter, leftover);
        Ok(())
    }
}

/// Completes when this side requests to close or to drain the connection.
async fn wait_for_close_request(shared: &SharedConnection) -> TransportError {
    std::future::poll_fn(|context| {
        let mut session = shared.session.lock();
        if session.close_request().is_some() || shared.is_draining() {
            return Poll::Ready(TransportError::closed(shared.peer));
        }
        session.set_driver_waker(context.waker().clone());
        Poll::Pending
    })
    .await
}

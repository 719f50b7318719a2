//! What two ends say to each other before the first frame, if connections are secured from their
//! first byte on.

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

/// Enough for most handshakes' messages at once.
const READ_SIZE: usize = 8 << 10;

/// How connections of one side are secured.
pub(crate) trait Handshaker: Send + Sync {
    /// Begins the handshake with `peer`; may wait for its turn.
    fn start<'a>(
        &'a self,
        peer: &'a PeerAddress,
    ) -> BoxFuture<'a, Result<Box<dyn Handshake>, TransportError>>;

    /// How long it may take in all, and the setting that says so.
    fn timeout(&self) -> (Duration, &'static str);
}

/// One side of a handshake, without a socket.
pub(crate) trait Handshake: Send {
    /// Takes in what the peer has sent (nothing at first) and appends what it is to be sent; true:
    /// that is all.
    ///
    /// What was appended before an error is sent too: it tells the peer why.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, BoxError>;

    /// What it has come to.
    fn secured(self: Box<Self>) -> HandshakeOutput;
}

/// The filters that a handshake has agreed on.
pub(crate) struct HandshakeOutput {
    pub(crate) seal: Box<dyn ByteFilter>,
    pub(crate) open: Box<dyn ByteFilter>,
    /// What the peer has sent behind its part of the handshake, opened.
    pub(crate) leftover: Vec<u8>,
}

impl ConnectionDriver {
    /// Secures the connection before it is run. After an error it is to be [given
    /// up](Self::give_up).
    pub(crate) async fn handshake(
        &mut self,
        security: &dyn Handshaker,
        peer: &PeerAddress,
    ) -> Result<(), TransportError> {
        let (limit, setting) = security.timeout();
        let shared = Arc::clone(&self.shared);
        let attempt = async {
            let handshake = security.start(peer).await?;
            self.run_handshake(handshake, peer).await
        };
        tokio::select! {
            result = tokio::time::timeout(limit, attempt) => result.unwrap_or_else(|elapsed| {
                let text = format!(
                    "the TLS handshake with {peer} took longer than {limit:?}. This timeout is controlled by {setting}"
                );
                Err(TransportError::new(ErrorKind::ConnectTimeout, text).with_peer(peer).with_source(elapsed))
            }),
            closed = close_error(&shared) => Err(closed),
        }
    }

    /// Ends a connection that could not be secured. Its handler has not heard of it, and whoever
    /// made it counts the failure.
    pub(crate) async fn abort_handshake(mut self: Box<Self>, error: &TransportError) {
        self.close_with(error);
        if error.kind() == ErrorKind::Tls {
            // The peer is to read why.
            self.linger().await;
        }
    }

    async fn run_handshake(
        &mut self,
        mut handshake: Box<dyn Handshake>,
        peer: &PeerAddress,
    ) -> Result<(), TransportError> {
        let failed = |error: BoxError| {
            TransportError::new(
                ErrorKind::Tls,
                format!("the TLS handshake with {peer} failed: {error}"),
            )
            .with_peer(peer)
            .with_source(error)
        };
        let cut_off = |error: BoxError| {
            let text =
                format!("the TLS handshake with {peer} was cut off ({error}): does it speak TLS?");
            TransportError::new(ErrorKind::Io, text).with_peer(peer).with_source(error)
        };
        let mut input = vec![0; READ_SIZE];
        let mut received = 0;
        loop {
            let mut output = Vec::new();
            let step = handshake.step(&input[..received], &mut output);
            let written = self.writer.write_raw(&output).await;
            let done = step.map_err(failed)?;
            written.map_err(|error| cut_off(error.into()))?;
            if done {
                break;
            }
            received = self
                .reader
                .io_mut()
                .read(&mut input)
                .await
                .map_err(|error| cut_off(error.into()))?;
            if received == 0 {
                return Err(cut_off("the peer ended the connection".into()));
            }
            self.resources.count_received(&self.shared, received);
        }
        let HandshakeOutput { seal, open, leftover: early } = handshake.secured();
        self.writer.install(seal);
        self.reader.install(open, early);
        Ok(())
    }
}

/// Resolves when this side wants the connection to end.
async fn close_error(shared: &SharedConnection) -> TransportError {
    std::future::poll_fn(|context| {
        let mut session = shared.session.lock();
        if session.closing().is_some() || shared.is_draining() {
            return Poll::Ready(TransportError::closed(shared.peer));
        }
        session.set_driver_waker(context.waker().clone());
        Poll::Pending
    })
    .await
}

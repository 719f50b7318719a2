//! [`Download`], a file that is received from the file server of another environment.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use network_common::{StreamBody, TransportError};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, ReadBuf};

use super::download_pool::{ConnectionLease, DownloadPool};
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};

/// A file that is being received; from [`RpcEnv::open_channel`](crate::RpcEnv::open_channel).
///
/// It implements [`Stream`] of pieces and [`AsyncRead`]. It ends after exactly [`len`](Self::len)
/// bytes, or with an error whose text contains the URI; the bytes before the error are valid.
/// Reading is cancel safe. Dropping it before the end stops the transfer.
///
/// While it is not read, it buffers about 1 MiB and the sender pauses. If it is not read for
/// `spark.files.io.connectionTimeout`, the download fails.
///
/// ```no_run
/// # async fn example(env: rpc_core::RpcEnv) -> Result<(), rpc_core::RpcError> {
/// let mut download = env.open_channel("spark://10.0.0.1:7077/files/model.bin").await?;
/// while let Some(piece) = download.next_piece().await {
///     println!("{} bytes, {} remain", piece?.len(), download.remaining());
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "dropping it stops the download"]
pub struct Download {
    uri: String,
    body: StreamBody,
    lease: ConnectionLease,
}

impl Download {
    /// Requests the file at `uri` over a connection of `pool`.
    pub(crate) async fn open(pool: &Arc<DownloadPool>, uri: &str) -> Result<Self, RpcError> {
        let (address, stream_id) = parse_uri(uri)?;
        match pool.stream(&address, &stream_id).await {
            Ok((lease, body)) => Ok(Self { uri: uri.to_owned(), body, lease }),
            Err(error) => {
                Err(pool.download_error(format!("cannot download {uri}"), &address, error))
            }
        }
    }

    /// Returns the URI that was given to `open_channel`.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Returns the length of the whole file in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.body.len()
    }

    /// Returns whether the whole file is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// Returns the number of bytes that were not yet read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.body.remaining()
    }

    /// Returns the next piece, which is not empty; `None` at the end.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Network`] if the connection is lost, also because the peer cannot read the rest
    /// of the file; [`ErrorKind::Stopped`] if this environment shuts down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no bytes.
    pub async fn next_piece(&mut self) -> Option<Result<Bytes, RpcError>> {
        let piece = self.body.next_piece().await?;
        Some(piece.map_err(|error| self.error(error)))
    }

    fn error(&self, error: TransportError) -> RpcError {
        let done = self.len() - self.remaining();
        let operation =
            format!("the download of {} broke off after {done} of {} bytes", self.uri, self.len());
        let ConnectionLease { pool, address, .. } = &self.lease;
        pool.download_error(operation, address, error).mark_as_result()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.lease.is_reusable = self.remaining() == 0;
    }
}

impl Stream for Download {
    type Item = Result<Bytes, RpcError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let piece = ready!(Pin::new(&mut this.body).poll_next(context));
        Poll::Ready(piece.map(|piece| piece.map_err(|error| this.error(error))))
    }
}

impl AsyncRead for Download {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = ready!(Pin::new(&mut this.body).poll_read(context, buffer));
        Poll::Ready(read.map_err(|error| {
            let kind = error.kind();
            error
                .downcast()
                .map_or_else(|other| other, |error| io::Error::new(kind, this.error(error)))
        }))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("uri", &self.uri)
            .field("length", &self.len())
            .field("remaining", &self.remaining())
            .finish()
    }
}

/// Returns the address and the decoded path of a URI.
fn parse_uri(uri: &str) -> Result<(RpcAddress, String), RpcError> {
    let invalid_error = |why: &str| {
        RpcError::new(ErrorKind::InvalidAddress, format!("cannot download {uri}: {why}"))
    };
    let rest = uri
        .strip_prefix("spark://")
        .ok_or_else(|| invalid_error("it does not begin with spark://"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.is_empty() || authority.starts_with(':') {
        return Err(invalid_error("Host name must be defined."));
    }
    let address = match authority.parse::<RpcAddress>() {
        Ok(address) if address.port() > 0 => address,
        Err(error) if authority.contains(':') => {
            return Err(invalid_error("its host and port are not valid").with_source(error));
        }
        _ => return Err(invalid_error("Port must be defined.")),
    };
    if path.is_empty() {
        return Err(invalid_error("Path must be defined."));
    }
    if path.contains(['?', '#']) {
        return Err(invalid_error("a query or a fragment is not allowed"));
    }
    let path = percent_decode_str(path)
        .decode_utf8()
        .map_err(|error| invalid_error("its path is not UTF-8").with_source(error))?;
    Ok((address, path.into_owned()))
}

//! A body in a file, prepared piece by piece for the writer.
//!
//! A piece is a region in the page cache, which the kernel sends, or bytes in memory. Calls that
//! may block run on a blocking thread.

use std::fs::File;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::ConnectionResources;
use super::sendfile::{self, FileRegion};
use crate::blocking::run_blocking;
use crate::buffer::{Content, FileSegment};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::handler::cut_error;
use crate::log_limit::log_limited;
use crate::peer_text::LogText;
use crate::session::BulkMessage;

/// Number of bytes that are read into the page cache at once.
const REGION_BYTES: u64 = 4 << 20;
/// Number of bytes that are read into memory at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Prepares the next piece of a file.
pub(super) type PieceFuture = BoxFuture<'static, io::Result<PreparedPiece>>;

/// A message whose body is in a file, and the state of its preparation.
pub(super) struct FileBody {
    bulk: BulkMessage,
    segment: FileSegment,
    /// `None` until it is open.
    file: Option<Arc<File>>,
    prepared_bytes: u64,
    /// The kernel may send this file to the socket.
    can_sendfile: bool,
}

/// The content of a piece.
pub(super) enum FilePiece {
    /// A region of the file that is in the page cache.
    Cached(FileRegion),
    Memory(Bytes),
    Empty,
}

/// A piece that can be written now, and the rest of its body.
pub(super) struct PreparedPiece {
    /// The header of the message, in front of the first piece; otherwise empty.
    pub(super) header: Vec<u8>,
    pub(super) piece: FilePiece,
    pub(super) body: Box<FileBody>,
    pub(super) is_last: bool,
}

impl FileBody {
    /// Returns `None` if the body of `bulk` is not in a file.
    ///
    /// Boxed, because most connections never send a file.
    pub(super) fn new(bulk: BulkMessage, can_sendfile: bool) -> Option<Box<Self>> {
        let Content::File(segment) = bulk.body.content() else { return None };
        let segment = segment.clone();
        Some(Box::new(Self { bulk, segment, file: None, prepared_bytes: 0, can_sendfile }))
    }

    /// Prepares the next piece.
    ///
    /// A piece in the page cache is ready at once. Others are read by a blocking thread.
    pub(super) fn prepare(
        mut self: Box<Self>,
        shared: &Arc<SharedConnection>,
        resources: &Arc<ConnectionResources>,
    ) -> PieceFuture {
        let is_first = self.file.is_none();
        if let Some(region) = self.next_cached() {
            let prepared = self.into_prepared(is_first, FilePiece::Cached(region));
            return Box::pin(ready(Ok(prepared)));
        }
        let (shared, resources) = (Arc::clone(shared), Arc::clone(resources));
        Box::pin(run_blocking(move || match self.read_next(&resources) {
            Ok(piece) => Ok(self.into_prepared(is_first, piece)),
            Err(error) if is_first => {
                let header = self.fail(&error, &shared);
                Ok(PreparedPiece { header, piece: FilePiece::Empty, body: self, is_last: true })
            }
            Err(error) => Err(error),
        }))
    }

    fn into_prepared(self: Box<Self>, is_first: bool, piece: FilePiece) -> PreparedPiece {
        let mut header = Vec::new();
        if is_first {
            self.bulk.message.encode_header(self.bulk.in_frame(), &mut header);
        }
        let is_last = self.prepared_bytes == self.segment.length;
        PreparedPiece { header, piece, body: self, is_last }
    }

    /// Returns the next region if it can be found in the page cache without blocking.
    fn next_cached(&mut self) -> Option<FileRegion> {
        let (position, length) = self.next_range().filter(|_| self.can_sendfile)?;
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => self.segment.open_cached()?,
        };
        sendfile::is_cached(&file, position, length).then(|| self.take_region(file, length))
    }

    /// Returns the position and the length of the next region.
    fn next_range(&self) -> Option<(u64, u64)> {
        let remaining = self.segment.length - self.prepared_bytes;
        let position = self.segment.offset + self.prepared_bytes;
        (remaining > 0).then(|| (position, remaining.min(REGION_BYTES)))
    }

    fn take_region(&mut self, file: Arc<File>, length: u64) -> FileRegion {
        let position = self.segment.offset + self.prepared_bytes;
        self.prepared_bytes += length;
        self.file = Some(Arc::clone(&file));
        FileRegion { file, position, remaining: length, segment: self.segment.clone() }
    }

    /// Opens the file if necessary, and reads the next piece. Blocks.
    fn read_next(&mut self, resources: &ConnectionResources) -> io::Result<FilePiece> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.segment.open()?,
        };
        self.file = Some(Arc::clone(&file));
        let Some((position, length)) = self.next_range() else { return Ok(FilePiece::Empty) };
        if self.can_sendfile {
            let is_supported = sendfile::read_ahead(&file, position, length);
            if is_supported.map_err(|error| self.segment.read_error(error.kind(), &error))? {
                return Ok(FilePiece::Cached(self.take_region(file, length)));
            }
            self.can_sendfile = false;
        }
        let length = length.min(PIECE_BYTES) as usize;
        let (mut buffer, start) = resources.pool.take_at_page_offset(length, position);
        let range = start..start + length;
        self.segment.read_exact_at(&file, &mut buffer[range.clone()], self.prepared_bytes)?;
        self.prepared_bytes += length as u64;
        resources.metrics.copied_file_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(FilePiece::Memory(resources.pool.freeze(buffer, range)))
    }

    /// Fails a message whose file cannot be opened or read.
    ///
    /// No byte of the message is written yet. A response becomes a failure, whose header is
    /// returned. An upload is not sent; its request fails.
    fn fail(&self, error: &io::Error, shared: &SharedConnection) -> Vec<u8> {
        let mut header = Vec::new();
        log_limited!(|suppressed| {
            let (peer, error) = (shared.peer, LogText(error));
            tracing::warn!(suppressed, %peer, %error, "a body in a file cannot be sent");
        });
        if let Some(key) = self.bulk.upload {
            let text = format!("upload to {} failed", shared.peer);
            let failure = TransportError::new(ErrorKind::Io, text)
                .with_peer(shared.peer)
                .with_source(io::Error::new(error.kind(), error.to_string()));
            let waker = shared.session.lock().requests.complete_rpc(key.id(), Err(failure));
            if let Ok(Some(waker)) = waker {
                waker.wake();
            }
        } else if let Some(failure) = self.bulk.message.clone().into_failure(cut_error(error)) {
            failure.encode_header(0, &mut header);
        }
        header
    }
}

//! A body in a file, made ready piece by piece: a region that is in the page cache, for the kernel
//! to send, or bytes in memory where the kernel cannot. Whatever may block, does so on a blocking
//! thread.

use std::fs::File;
use std::future::ready;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{ConnectionResources, sendfile};
use crate::buffer::{Content, FileSegment};
use crate::client::SharedConnection;
use crate::error::{ErrorKind, TransportError};
use crate::handler::cut_error;
use crate::session::BulkMessage;

/// How much is read ahead for the kernel, and how much at once into memory.
const REGION: u64 = 4 << 20;
const PIECE: u64 = 1 << 20;

/// The next piece to come.
pub(super) type PieceFuture = BoxFuture<'static, io::Result<PreparedPiece>>;

/// A message whose body is in a file, and how much of that has been made ready.
pub(super) struct FileBody {
    item: BulkMessage,
    segment: FileSegment,
    /// `None` until it is open.
    file: Option<Arc<File>>,
    done: u64,
    /// Whether the kernel may send it.
    native: bool,
}

pub(super) enum FilePiece {
    /// Bytes of a file that are in the page cache.
    Cached(FileRegion),
    Memory(Bytes),
    /// There is no body.
    Nothing,
}

#[derive(Debug)]
pub(super) struct FileRegion {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) left: u64,
    segment: FileSegment,
}

impl FileRegion {
    /// The error of a file that ends too early.
    pub(super) fn truncated(&self) -> io::Error {
        self.segment.truncated(self.file.metadata().map_or(0, |metadata| metadata.len()))
    }
}

/// What can be written now.
pub(super) struct PreparedPiece {
    /// Header bytes, if they come before this piece.
    pub(super) head: Vec<u8>,
    pub(super) piece: FilePiece,
    pub(super) send: Box<FileBody>,
    /// No piece follows.
    pub(super) last: bool,
}

impl FileBody {
    /// `None` if the body is not in a file. Boxed: most connections never send one.
    pub(super) fn new(item: BulkMessage, native: bool) -> Option<Box<Self>> {
        let Content::File(segment) = item.body.content() else { return None };
        let segment = segment.clone();
        Some(Box::new(Self { item, segment, file: None, done: 0, native }))
    }

    /// Makes the next piece ready.
    pub(super) fn prepare(
        mut self: Box<Self>,
        shared: &Arc<SharedConnection>,
        resources: &Arc<ConnectionResources>,
    ) -> PieceFuture {
        // What takes microseconds is not worth another thread's wake-up.
        let begins = self.file.is_none();
        if let Some(region) = self.next_cached() {
            return Box::pin(ready(Ok(self.ready(begins, FilePiece::Cached(region)))));
        }
        let (shared, resources) = (Arc::clone(shared), Arc::clone(resources));
        let thread = tokio::task::spawn_blocking(move || match self.next_piece(&resources) {
            Ok(piece) => Ok(self.ready(begins, piece)),
            Err(error) if begins => {
                let head = self.unreadable(&error, &shared);
                Ok(PreparedPiece { head, piece: FilePiece::Nothing, send: self, last: true })
            }
            Err(error) => Err(error),
        });
        Box::pin(async move { thread.await.map_err(io::Error::other)? })
    }

    /// `begins`: nothing of it was written yet.
    fn ready(self: Box<Self>, begins: bool, piece: FilePiece) -> PreparedPiece {
        let mut head = Vec::new();
        if begins {
            self.item.message.encode_header(self.item.in_frame(), &mut head);
        }
        let last = self.done == self.segment.length;
        PreparedPiece { head, piece, send: self, last }
    }

    /// What can be sent at once, if that can be told without blocking.
    fn next_cached(&mut self) -> Option<FileRegion> {
        let (position, length) = self.next_region().filter(|_| self.native)?;
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => self.segment.open_cached()?,
        };
        sendfile::is_cached(&file, position, length).then(|| self.begin(file, length))
    }

    /// Where the next region is, and its length.
    fn next_region(&self) -> Option<(u64, u64)> {
        let left = self.segment.length - self.done;
        (left > 0).then(|| (self.segment.offset + self.done, left.min(REGION)))
    }

    fn begin(&mut self, file: Arc<File>, length: u64) -> FileRegion {
        let position = self.segment.offset + self.done;
        self.done += length;
        self.file = Some(Arc::clone(&file));
        FileRegion { file, position, left: length, segment: self.segment.clone() }
    }

    /// Opens the file first if that was not done yet. Blocks.
    fn next_piece(&mut self, resources: &ConnectionResources) -> io::Result<FilePiece> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.segment.open()?,
        };
        self.file = Some(Arc::clone(&file));
        let Some((position, length)) = self.next_region() else { return Ok(FilePiece::Nothing) };
        if self.native {
            let sendable = sendfile::read_ahead(&file, position, length);
            if sendable.map_err(|error| self.segment.describe(error.kind(), &error))? {
                return Ok(FilePiece::Cached(self.begin(file, length)));
            }
            self.native = false;
        }
        let length = length.min(PIECE) as usize;
        let mut buffer = resources.pool.take(length);
        self.segment.read_exact_at(&file, &mut buffer[..length], self.done)?;
        self.done += length as u64;
        resources.metrics.copied_file_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(FilePiece::Memory(resources.pool.freeze(buffer, length)))
    }

    /// The file cannot be opened or read. Nothing was written yet, so the failure twin goes out
    /// instead (wire 5), or, for an upload, nothing at all.
    fn unreadable(&self, error: &io::Error, shared: &SharedConnection) -> Vec<u8> {
        let mut head = Vec::new();
        tracing::warn!(peer = %shared.peer, %error, "a file body cannot be sent");
        if let Some(ticket) = self.item.upload {
            let text = format!("upload to {} failed: {error}", shared.peer);
            let failure = TransportError::new(ErrorKind::Io, text)
                .with_peer(shared.peer)
                .with_source(io::Error::new(error.kind(), error.to_string()));
            let answered = shared.session.lock().requests.complete_rpc(ticket.id(), Err(failure));
            if let Ok(Some(waker)) = answered {
                waker.wake();
            }
        } else if let Some(twin) = self.item.message.clone().into_failure(cut_error(error)) {
            twin.encode_header(0, &mut head);
        }
        head
    }
}

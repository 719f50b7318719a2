//! A body in a file, made ready piece by piece on blocking threads: a region that is in the page cache, for the kernel to
//! send, or bytes in memory where the kernel cannot.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Resources, sendfile};
use crate::buffer::{Content, FileSegment};
use crate::client::Shared;
use crate::error::{ErrorKind, TransportError};
use crate::handler::error_text;
use crate::session::BulkItem;

/// How much is read ahead for the kernel, and how much at once into memory.
const REGION: u64 = 4 << 20;
const PIECE: u64 = 1 << 20;

/// The next piece to come.
pub(super) type Ahead = BoxFuture<'static, io::Result<Ready>>;

/// A message whose body is in a file, and how much of that has been made ready.
pub(super) struct FileSend {
    item: BulkItem,
    segment: FileSegment,
    /// `None` until it is open.
    file: Option<Arc<File>>,
    done: u64,
    /// Whether the kernel may send it.
    native: bool,
}

pub(super) enum Piece {
    /// Bytes of a file that are in the page cache.
    Cached(Region),
    Memory(Bytes),
    /// There is no body.
    Nothing,
}

#[derive(Debug)]
pub(super) struct Region {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) left: u64,
    segment: FileSegment,
}

impl Region {
    /// The error of a file that ends too early.
    pub(super) fn truncated(&self) -> io::Error {
        self.segment.truncated(self.file.metadata().map_or(0, |metadata| metadata.len()))
    }
}

/// What can be written now.
pub(super) struct Ready {
    /// Header bytes, if they come before this piece.
    pub(super) head: Vec<u8>,
    pub(super) piece: Piece,
    pub(super) send: FileSend,
    /// No piece follows.
    pub(super) last: bool,
}

impl FileSend {
    /// `None` if the body is not in a file.
    pub(super) fn new(item: BulkItem, native: bool) -> Option<Self> {
        let Content::File(segment) = item.body.content() else { return None };
        let segment = segment.clone();
        Some(Self { item, segment, file: None, done: 0, native })
    }

    /// Makes the next piece ready on a blocking thread.
    pub(super) fn prepare(mut self, shared: &Arc<Shared>, resources: &Arc<Resources>) -> Ahead {
        let (shared, resources) = (Arc::clone(shared), Arc::clone(resources));
        let thread = tokio::task::spawn_blocking(move || {
            let mut head = Vec::new();
            let begins = self.file.is_none();
            let piece = match self.next_piece(&resources) {
                Ok(piece) => piece,
                Err(error) if begins => {
                    self.unreadable(&error, &shared, &mut head);
                    return Ok(Ready { head, piece: Piece::Nothing, send: self, last: true });
                }
                Err(error) => return Err(error),
            };
            if begins {
                self.item.message.encode_head(self.item.in_frame(), &mut head);
            }
            let last = self.done == self.segment.length;
            Ok(Ready { head, piece, send: self, last })
        });
        Box::pin(async move { thread.await.map_err(io::Error::other)? })
    }

    /// Opens the file first if that was not done yet.
    fn next_piece(&mut self, resources: &Resources) -> io::Result<Piece> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.segment.open()?,
        };
        self.file = Some(Arc::clone(&file));
        let left = self.segment.length - self.done;
        if left == 0 {
            return Ok(Piece::Nothing);
        }
        let position = self.segment.offset + self.done;
        if self.native {
            let length = left.min(REGION);
            let sendable = sendfile::read_ahead(&file, position, length);
            if sendable.map_err(|error| self.segment.describe(error.kind(), &error))? {
                self.done += length;
                let segment = self.segment.clone();
                return Ok(Piece::Cached(Region { file, position, left: length, segment }));
            }
            self.native = false;
        }
        let length = left.min(PIECE) as usize;
        let mut buffer = resources.pool.take(length);
        self.segment.read_exact_at(&file, &mut buffer[..length], self.done)?;
        self.done += length as u64;
        resources.metrics.copied_file_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(Piece::Memory(resources.pool.freeze(buffer, length)))
    }

    /// The file cannot be opened or read. Nothing was written yet, so the failure twin goes out instead (wire 5), or, for an
    /// upload, nothing at all.
    fn unreadable(&self, error: &io::Error, shared: &Shared, head: &mut Vec<u8>) {
        tracing::warn!(peer = %shared.peer, %error, "a file body cannot be sent");
        if let Some(ticket) = self.item.upload {
            let text = format!("upload to {} failed: {error}", shared.peer);
            let failure = TransportError::new(ErrorKind::Io, text)
                .with_peer(shared.peer)
                .with_source(io::Error::new(error.kind(), error.to_string()));
            let answered = shared.session.lock().requests.answer_rpc(ticket.id(), Err(failure));
            if let Ok(Some(waker)) = answered {
                waker.wake();
            }
        } else if let Some(twin) = self.item.message.clone().failure_twin(error_text(error)) {
            twin.encode_head(0, head);
        }
    }
}

//! Sending a region of a file: by the kernel from a blocking thread, or in pieces through memory.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::net::tcp::OwnedWriteHalf;

use super::Resources;
use crate::buffer::{Content, FileSegment};
use crate::client::Shared;
use crate::error::{ErrorKind, TransportError};
use crate::handler::error_text;
use crate::session::BulkItem;

/// Size of the pieces that pass through memory.
const PIECE: u64 = 1 << 20;

/// A message whose body is in a file, and how far its sending has come.
pub(super) struct FileSend {
    item: BulkItem,
    /// `None` until the file is open, and after it turned out not to be readable.
    file: Option<Arc<File>>,
    segment: Option<FileSegment>,
    /// Header bytes, and how many of them were sent.
    head: Vec<u8>,
    head_sent: usize,
    /// Body bytes that are left.
    offset: u64,
    left: u64,
}

impl FileSend {
    pub(super) fn new(item: BulkItem) -> Self {
        let segment = match item.body.content() {
            Content::File(segment) => Some(segment.clone()),
            Content::Memory(_) => None,
        };
        Self { item, file: None, segment, head: Vec::new(), head_sent: 0, offset: 0, left: 0 }
    }

    /// Opens the file. If that fails nothing was written yet, so the failure twin goes out instead (wire 5), or, for an
    /// upload, nothing at all.
    fn open(&mut self, shared: &Shared) {
        let Some(segment) = &self.segment else { return };
        match segment.open() {
            Ok(file) => {
                self.file = Some(file);
                self.left = segment.length;
                self.item.message.encode_head(self.item.in_frame(), &mut self.head);
            }
            Err(error) => {
                tracing::warn!(peer = %shared.peer, %error, "a file body cannot be sent");
                self.segment = None;
                if let Some(ticket) = self.item.upload {
                    let failure = TransportError::new(
                        ErrorKind::Io,
                        format!("upload to {} failed: {error}", shared.peer),
                    )
                    .with_peer(shared.peer)
                    .with_source(error);
                    let waker = shared.session.lock().requests.answer_rpc(ticket.id(), Err(failure));
                    if let Ok(Some(waker)) = waker {
                        waker.wake();
                    }
                } else if let Some(twin) = self.item.message.clone().failure_twin(error_text(&error)) {
                    twin.encode_head(0, &mut self.head);
                }
            }
        }
    }

    /// The next bytes in memory: the header if it was not sent, and a piece of the file; empty at the end. Blocks.
    fn read_piece(&mut self, shared: &Shared, resources: &Resources) -> io::Result<(Bytes, Bytes)> {
        if self.file.is_none() {
            self.open(shared);
        }
        let head = Bytes::copy_from_slice(&self.head[self.head_sent..]);
        self.head_sent = self.head.len();
        let (Some(file), Some(segment)) = (&self.file, &self.segment) else {
            return Ok((head, Bytes::new()));
        };
        let length = self.left.min(PIECE) as usize;
        let mut buffer = resources.pool.take(length);
        segment.read_exact_at(file, &mut buffer[..length], self.offset)?;
        self.offset += length as u64;
        self.left -= length as u64;
        resources.metrics.copied_file_bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok((head, resources.pool.freeze(buffer, length)))
    }
}

/// Reads the next piece on a blocking thread.
pub(super) async fn read_ahead(
    mut send: FileSend,
    shared: Arc<Shared>,
    resources: Arc<Resources>,
) -> io::Result<(FileSend, Bytes, Bytes)> {
    let read = move || {
        let (head, piece) = send.read_piece(&shared, &resources)?;
        Ok((send, head, piece))
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// How a run of the sending thread ended. The socket comes back in every case but an error.
pub(super) enum Sent {
    /// No more files wait, or something else does.
    All(OwnedWriteHalf),
    /// The peer does not read: wait for it without holding a thread.
    Stalled(OwnedWriteHalf, FileSend),
    /// The kernel cannot send this file.
    Unsupported(OwnedWriteHalf, FileSend),
}

#[cfg(target_os = "linux")]
pub(super) use linux::send_files;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;
    use rustix::net::SendFlags;
    use tokio::io::Interest;
    use tokio::net::TcpStream;

    use super::*;

    /// How long the thread waits for a peer before it is given back.
    const PATIENCE: Duration = Duration::from_millis(20);

    enum Step {
        Done,
        Blocked,
        Unsupported,
    }

    /// Sends `send`, and then every file that is next in line. Blocks: cold files are read from the disk here.
    pub(in super::super) fn send_files(
        half: OwnedWriteHalf,
        mut send: FileSend,
        shared: &Shared,
        resources: &Resources,
    ) -> io::Result<Sent> {
        loop {
            match send.advance(half.as_ref(), shared, resources)? {
                Step::Done => match shared.session.lock().outgoing.take_file() {
                    Some(item) => send = FileSend::new(item),
                    None => return Ok(Sent::All(half)),
                },
                Step::Blocked => {
                    if !becomes_writable(half.as_ref())? {
                        return Ok(Sent::Stalled(half, send));
                    }
                }
                Step::Unsupported => return Ok(Sent::Unsupported(half, send)),
            }
        }
    }

    impl FileSend {
        fn advance(
            &mut self,
            socket: &TcpStream,
            shared: &Shared,
            resources: &Resources,
        ) -> io::Result<Step> {
            if self.file.is_none() {
                self.open(shared);
            }
            while self.head_sent < self.head.len() {
                let rest = &self.head[self.head_sent..];
                // The body follows at once: without this the header would travel as a packet of its own.
                let flags =
                    SendFlags::NOSIGNAL | if self.left > 0 { SendFlags::MORE } else { SendFlags::empty() };
                match socket
                    .try_io(Interest::WRITABLE, || Ok(rustix::net::send(socket.as_fd(), rest, flags)?))
                {
                    Ok(count) => {
                        self.head_sent += count;
                        resources.wrote(shared, count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Blocked),
                    Err(error) => return Err(error),
                }
            }
            let (Some(file), Some(segment)) = (&self.file, &self.segment) else {
                return Ok(Step::Done);
            };
            while self.left > 0 {
                let mut position = segment.offset + self.offset;
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(1 << 30);
                let sent = socket.try_io(Interest::WRITABLE, || {
                    Ok(rustix::fs::sendfile(socket.as_fd(), file.as_fd(), Some(&mut position), count)?)
                });
                match sent {
                    Ok(0) => return Err(segment.truncated(file.metadata()?.len())),
                    Ok(count) => {
                        self.offset += count as u64;
                        self.left -= count as u64;
                        resources.metrics.sendfile_bytes.fetch_add(count as u64, Ordering::Relaxed);
                        resources.wrote(shared, count);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::Blocked),
                    Err(error)
                        if [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]
                            .iter()
                            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) =>
                    {
                        return Ok(Step::Unsupported);
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(Step::Done)
        }
    }

    fn becomes_writable(socket: &TcpStream) -> io::Result<bool> {
        let patience = Timespec { tv_sec: 0, tv_nsec: PATIENCE.subsec_nanos().into() };
        let mut sockets = [PollFd::new(socket, PollFlags::OUT)];
        match poll(&mut sockets, Some(&patience)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

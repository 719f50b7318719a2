//! System calls of `sendfile`: bytes go from the page cache to a socket without a copy.
//!
//! Linux only. On other systems `is_cached` and `read_ahead` return false, and the others fail.

use std::fs::File;
use std::io;
use std::sync::Arc;

#[cfg(target_os = "linux")]
pub(super) use linux::{is_cached, read_ahead, send, send_header};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::{is_cached, read_ahead, send, send_header};

use crate::buffer::FileSegment;

/// A region of an open file that the kernel sends.
#[derive(Debug)]
pub(super) struct FileRegion {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) remaining: u64,
    pub(super) segment: FileSegment,
}

impl FileRegion {
    /// Returns the error of a file that has become shorter.
    fn truncated_error(&self) -> io::Error {
        self.segment.truncated_error(self.file.metadata().map_or(0, |metadata| metadata.len()))
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{self, IoSliceMut};
    use std::os::fd::AsFd;
    use std::sync::OnceLock;
    use std::task::{Context, Poll, ready};

    use rustix::fs::sendfile;
    use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};
    use rustix::net::SendFlags;
    use tokio::io::Interest;
    use tokio::net::TcpStream;

    use super::FileRegion;

    /// Distance of the bytes that are read to find out whether a region is cached.
    ///
    /// Every probe loads a cache line that is not needed otherwise.
    const PROBE_STEP: u64 = 512 << 10;
    /// Maximal number of bytes of one system call.
    ///
    /// With more, a fast receiver could occupy the thread for a long time.
    const MAX_SENDFILE: u64 = 1 << 20;

    /// Returns whether the kernel can send the region from the page cache.
    ///
    /// Does not block.
    pub(in super::super) fn is_cached(file: &File, position: u64, length: u64) -> bool {
        first_uncached(file, position, length).is_none()
            && null_sink().is_ok_and(|sink| probe_sendfile(sink, file, position).is_ok())
    }

    /// Reads the region into the page cache.
    ///
    /// Returns false if the kernel cannot send this file. Blocks.
    pub(in super::super) fn read_ahead(
        file: &File,
        position: u64,
        length: u64,
    ) -> io::Result<bool> {
        let Ok(sink) = null_sink() else { return Ok(false) };
        match probe_sendfile(sink, file, position) {
            Ok(()) => {}
            // Sandboxes return EPERM.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let end = position + length;
        let Some(mut position) = first_uncached(file, position, length) else { return Ok(true) };
        // `sendfile` to a null sink populates the page cache without a copy to user space. It
        // starts before the byte found, because bytes between two probes may be uncached, too.
        position -= position % PROBE_STEP.min(length);
        while position < end {
            let count = (end - position) as usize;
            // At 0 the file has become shorter, which `send` reports.
            if retry_on_intr(|| sendfile(sink, file, Some(&mut position), count))? == 0 {
                break;
            }
        }
        Ok(true)
    }

    /// Sends one byte to the null sink; fails if the kernel cannot send this file.
    fn probe_sendfile(sink: &File, file: &File, position: u64) -> Result<(), Errno> {
        retry_on_intr(|| sendfile(sink, file, Some(&mut { position }), 1)).map(drop)
    }

    /// Returns the first probed position of the region that is not cached.
    ///
    /// Does not block.
    fn first_uncached(file: &File, position: u64, length: u64) -> Option<u64> {
        let end = position + length;
        let mut byte = [0];
        (position..end).step_by(PROBE_STEP as usize).chain([end - 1]).find(|&probe| {
            let buffer = &mut [IoSliceMut::new(&mut byte)];
            !matches!(preadv2(file, buffer, probe, ReadWriteFlags::NOWAIT), Ok(1))
        })
    }

    /// Sends bytes of the header in front of a region; returns their number.
    ///
    /// The kernel puts them into one segment with the region, and wakes the receiver once.
    pub(in super::super) fn send_header(
        socket: &TcpStream,
        header: &[u8],
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        poll_write_with(socket, context, || rustix::net::send(socket, header, flags))
    }

    /// Calls `write` when the socket is writable, until it does not fail with `EAGAIN`.
    fn poll_write_with(
        socket: &TcpStream,
        context: &mut Context<'_>,
        mut write: impl FnMut() -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(context))?;
            let written = socket.try_io(Interest::WRITABLE, || Ok(retry_on_intr(&mut write)?));
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// Sends the next bytes of a region in one system call; returns their number.
    pub(in super::super) fn send(
        socket: &TcpStream,
        region: &mut FileRegion,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let count = region.remaining.min(MAX_SENDFILE) as usize;
        let sent = ready!(poll_write_with(socket, context, || {
            sendfile(socket.as_fd(), &region.file, Some(&mut region.position), count)
        }))?;
        if sent == 0 {
            return Poll::Ready(Err(region.truncated_error()));
        }
        region.remaining -= sent as u64;
        Poll::Ready(Ok(sent))
    }

    /// Returns the null sink, `/dev/null`.
    fn null_sink() -> io::Result<&'static File> {
        static NULL: OnceLock<File> = OnceLock::new();
        if let Some(file) = NULL.get() {
            return Ok(file);
        }
        let file = File::options().write(true).open("/dev/null")?;
        Ok(NULL.get_or_init(|| file))
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::fs::File;
    use std::io;
    use std::task::{Context, Poll};

    use tokio::net::TcpStream;

    use super::FileRegion;

    pub(in super::super) fn is_cached(_: &File, _: u64, _: u64) -> bool {
        false
    }

    pub(in super::super) fn read_ahead(_: &File, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(in super::super) fn send_header(
        _: &TcpStream,
        _: &[u8],
        _: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }

    pub(in super::super) fn send(
        _: &TcpStream,
        _: &mut FileRegion,
        _: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

//! Moving bytes from a file to a socket without copying them: Linux only, and `false` or an error
//! elsewhere.

#[cfg(target_os = "linux")]
pub(super) use linux::{is_cached, read_ahead, send};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::{is_cached, read_ahead, send};

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::io::{self, IoSliceMut};
    use std::os::fd::AsFd;
    use std::sync::OnceLock;
    use std::task::{Context, Poll, ready};

    use rustix::fs::sendfile;
    use rustix::io::{Errno, ReadWriteFlags, preadv2, retry_on_intr};
    use tokio::io::Interest;
    use tokio::net::TcpStream;

    use super::super::file_body::FileRegion;

    /// Distance of the bytes that tell whether a region is cached. Each look costs a line of memory
    /// that nobody else needs.
    const PROBE_STEP: u64 = 512 << 10;
    /// Bytes per system call, so that a fast receiver does not keep the thread.
    const MAX_SENDFILE: u64 = 1 << 20;

    /// Whether the kernel can send the region from the page cache, as far as can be told without
    /// blocking.
    pub(in super::super) fn is_cached(file: &File, position: u64, length: u64) -> bool {
        first_uncached(file, position, length).is_none()
            && null_sink().is_ok_and(|null| probe_sendfile(null, file, position).is_ok())
    }

    /// Has the region read into the page cache; false if the kernel cannot send this file. Blocks.
    pub(in super::super) fn read_ahead(
        file: &File,
        position: u64,
        length: u64,
    ) -> io::Result<bool> {
        let Ok(null) = null_sink() else { return Ok(false) };
        match probe_sendfile(null, file, position) {
            Ok(()) => {}
            // The last one is a sandbox's.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let end = position + length;
        let Some(mut position) = first_uncached(file, position, length) else { return Ok(true) };
        // From somewhere before the first missing byte on: sending to nowhere reads without
        // copying.
        position -= position % PROBE_STEP.min(length);
        while position < end {
            let count = (end - position) as usize;
            // 0: the file is shorter; sending it will tell.
            if retry_on_intr(|| sendfile(null, file, Some(&mut position), count))? == 0 {
                break;
            }
        }
        Ok(true)
    }

    /// One byte tells whether this kind of file can be sent at all.
    fn probe_sendfile(null: &File, file: &File, position: u64) -> Result<(), Errno> {
        retry_on_intr(|| sendfile(null, file, Some(&mut { position }), 1)).map(drop)
    }

    /// Where the first part of the region is that is not in the page cache. Does not block.
    fn first_uncached(file: &File, position: u64, length: u64) -> Option<u64> {
        let end = position + length;
        let mut byte = [0];
        (position..end).step_by(PROBE_STEP as usize).chain([end - 1]).find(|&probe| {
            let buffer = &mut [IoSliceMut::new(&mut byte)];
            !matches!(preadv2(file, buffer, probe, ReadWriteFlags::NOWAIT), Ok(1))
        })
    }

    /// Sends the rest of a region, or as much as the socket takes; `Ready` with the bytes of one
    /// call.
    pub(in super::super) fn send(
        socket: &TcpStream,
        region: &mut FileRegion,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(socket.poll_write_ready(context))?;
            let count = region.left.min(MAX_SENDFILE) as usize;
            let sent = socket.try_io(Interest::WRITABLE, || {
                Ok(retry_on_intr(|| {
                    sendfile(socket.as_fd(), &region.file, Some(&mut region.position), count)
                })?)
            });
            match sent {
                Ok(0) => return Poll::Ready(Err(region.truncated())),
                Ok(count) => {
                    region.left -= count as u64;
                    return Poll::Ready(Ok(count));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

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

    use super::super::file_body::Region;

    pub(in super::super) fn is_cached(_: &File, _: u64, _: u64) -> bool {
        false
    }

    pub(in super::super) fn read_ahead(_: &File, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(in super::super) fn send(
        _: &TcpStream,
        _: &mut Region,
        _: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

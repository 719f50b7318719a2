//! Moving bytes from a file to a socket without copying them: Linux only, and `false` or an error elsewhere.

#[cfg(target_os = "linux")]
pub(super) use linux::{read_ahead, send};
#[cfg(not(target_os = "linux"))]
pub(super) use portable::{read_ahead, send};

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

    use super::super::file::Region;

    /// Distance of the bytes that tell whether a region is cached; the kernel reads at least this much ahead.
    const PROBE_STEP: u64 = 128 << 10;
    /// Bytes per system call, so that a fast receiver does not keep the thread.
    const MAX_SENDFILE: u64 = 1 << 20;

    /// Has the region read into the page cache; false if the kernel cannot send this file. Blocks.
    pub(in super::super) fn read_ahead(file: &File, position: u64, length: u64) -> io::Result<bool> {
        let null = null()?;
        let end = position + length;
        // One byte tells whether this kind of file can be sent at all.
        match retry_on_intr(|| sendfile(null, file, Some(&mut { position }), 1)) {
            Ok(_) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let mut byte = [0];
        let missing = (position..end).step_by(PROBE_STEP as usize).chain([end - 1]).find(|&probe| {
            let buffer = &mut [IoSliceMut::new(&mut byte)];
            !matches!(preadv2(file, buffer, probe, ReadWriteFlags::NOWAIT), Ok(1))
        });
        let Some(mut position) = missing else { return Ok(true) };
        // From somewhere before the first missing byte on: sending to nowhere reads without copying.
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

    /// Sends the rest of a region, or as much as the socket takes; `Ready` with the bytes of one call.
    pub(in super::super) fn send(
        socket: &TcpStream,
        region: &mut Region,
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

    fn null() -> io::Result<&'static File> {
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

    use super::super::file::Region;

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

//! [`Reader`], the state of the reading half of a connection's driver.

use std::sync::Arc;
use std::task::Waker;

use super::ConnectionResources;
use crate::budget::ConnectionAccount;
use crate::error::TransportError;
use crate::net::ReadHalf;
use crate::protocol::FrameDecoder;
use crate::session::{BodySender, ByteFilter, CloseNotify};

/// Number of reads, or parts of a read, in one poll of the driver.
const READS_PER_POLL: usize = 8;

/// The socket, the decoder and the counters of the read step.
pub(super) struct Reader {
    pub(super) io: ReadHalf,
    pub(super) decoder: FrameDecoder,
    pub(super) open_filter: Option<Box<dyn ByteFilter>>,
    /// The receiver of the stream or upload that is arriving.
    pub(super) incoming: Option<IncomingStream>,
    /// Number of the peer's requests that `Session::responded` counts the responses to.
    pub(super) received_requests: u64,
    /// Reading is paused (`Session::should_pause_reading`).
    pub(super) is_paused: bool,
    /// Client bootstraps were running before the last read (`Session::is_bootstrapping`).
    pub(super) is_bootstrapping: bool,
    /// The peer has ended its sending direction.
    pub(super) is_eof: bool,
    /// Bytes that are read and opened, but not decoded: responses are written first.
    pub(super) unprocessed: Vec<u8>,
    /// Bytes that are read, but not opened: a handshake may install another filter for them.
    pub(super) unopened: Vec<u8>,
    /// Number of decoded bytes of one read after which responses may be written.
    pub(super) flush_after: usize,
    /// Number of reads, or parts of a read, that are left in this poll.
    pub(super) read_budget: usize,
    /// This poll has woken callers.
    pub(super) has_woken_callers: bool,
    /// Number of bytes received before the peer was authenticated.
    pub(super) unauthenticated_bytes: usize,
    pub(super) wakers: Vec<Waker>,
}

/// A stream or upload whose body is arriving.
pub(super) struct IncomingStream {
    pub(super) sender: BodySender,
    /// A response to a stream request, not an upload.
    pub(super) is_stream: bool,
    pub(super) stream_id: String,
    pub(super) length: u64,
}

impl Reader {
    pub(super) fn new(
        io: ReadHalf,
        resources: &ConnectionResources,
        account: &Arc<ConnectionAccount>,
    ) -> Self {
        Self {
            io,
            decoder: FrameDecoder::with_pool(
                Arc::clone(&resources.frame_limits),
                Arc::clone(&resources.pool),
                Some(Arc::clone(account)),
            ),
            open_filter: None,
            incoming: None,
            received_requests: 0,
            is_paused: false,
            is_bootstrapping: false,
            is_eof: false,
            unprocessed: Vec::new(),
            unopened: Vec::new(),
            flush_after: 0,
            read_budget: 0,
            has_woken_callers: false,
            unauthenticated_bytes: 0,
            wakers: Vec::new(),
        }
    }

    /// Installs the filter of a handshake, and bytes that it has already opened.
    pub(super) fn install_filter(&mut self, open_filter: Box<dyn ByteFilter>, leftover: Vec<u8>) {
        self.open_filter = Some(open_filter);
        self.unprocessed = leftover;
    }

    pub(super) fn close_notify(&self) -> CloseNotify {
        self.open_filter
            .as_ref()
            .map_or(CloseNotify::Unsupported, |open_filter| open_filter.close_notify())
    }

    /// Resets the poll budget; called at the start of each poll of the driver.
    pub(super) fn reset_read_budget(&mut self) {
        self.read_budget = READS_PER_POLL;
        self.has_woken_callers = false;
    }

    /// Returns whether bytes are left to decode within the poll budget.
    pub(super) fn has_unprocessed(&self) -> bool {
        self.read_budget > 0 && !(self.unprocessed.is_empty() && self.unopened.is_empty())
    }

    /// Returns the bytes of memory of what is received and not decoded.
    pub(super) fn buffer_size(&self) -> usize {
        self.unprocessed.capacity() + self.unopened.capacity()
    }

    pub(super) fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    /// Ends the arriving body after the connection was closed.
    pub(super) fn on_close(&mut self, error: &TransportError) {
        self.wakers.drain(..).for_each(Waker::wake);
        if let Some(incoming) = self.incoming.take() {
            incoming.sender.finish(Err(error.clone()));
        }
    }
}

//! One-shot reply callbacks for the requests of a peer.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::buffer::ManagedBuffer;
use crate::client::SharedConnection;
use crate::protocol::{MAX_FRAME_PAYLOAD, Message};
use crate::session::BulkMessage;

/// The maximum number of bytes in an error text that is sent to a peer.
const MAX_ERROR_TEXT: usize = 1 << 20;

/// Sends the response to one RPC, from any thread and at any time.
///
/// Dropping it without a response fails the request. A response over a closed connection is
/// discarded.
///
/// ```
/// use bytes::Bytes;
/// use network_common::{RpcHandler, RpcResponseCallback, TransportClient};
///
/// struct NonEmpty;
///
/// impl RpcHandler for NonEmpty {
///     fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
///         if message.is_empty() {
///             callback.fail("the message is empty");
///         } else {
///             callback.reply(message);
///         }
///     }
/// }
/// ```
#[must_use = "dropping it without a response fails the request"]
pub struct RpcResponseCallback(ResponseSender);

impl RpcResponseCallback {
    pub(crate) fn new(shared: Arc<SharedConnection>, request_id: i64) -> Self {
        Self(ResponseSender { shared, request_id, responded: false })
    }

    /// Returns the id of the request on its connection.
    ///
    /// The caller gets the same id from
    /// [`RequestFuture::pending_request`](crate::RequestFuture::pending_request).
    #[must_use]
    pub fn request_id(&self) -> i64 {
        self.0.request_id
    }

    /// Sends a successful response; a `body` larger than a frame fails the request.
    pub fn reply(mut self, body: impl Into<Bytes>) {
        let body = body.into();
        match check_frame_len(body.len() as u64) {
            None => {
                self.0.respond(|request_id| Message::RpcResponse { request_id, body: () }, body)
            }
            Some(error) => self.0.fail(&error),
        }
    }

    /// Fails the request; the caller gets the text `{error:#}`, at most 1 MiB of it.
    pub fn fail(mut self, error: impl fmt::Display) {
        self.0.fail(&error);
    }
}

impl fmt::Debug for RpcResponseCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RpcResponseCallback").field(&self.0.request_id).finish()
    }
}

/// Sends the response to one request for merged block meta.
///
/// Dropping it without a response fails the request.
///
/// ```
/// # #[cfg(feature = "merged-blocks")]
/// # mod example {
/// use network_common::MergedBlockMetaCallback;
/// use network_common::protocol::{ProtocolError, put_bitmap};
/// use roaring::RoaringBitmap;
///
/// fn reply(callback: MergedBlockMetaCallback) -> Result<(), ProtocolError> {
///     let mut bitmaps = Vec::new();
///     put_bitmap(&RoaringBitmap::from([0, 2]), &mut bitmaps)?;
///     callback.reply(1, bitmaps);
///     Ok(())
/// }
/// # }
/// ```
#[must_use = "dropping it without a response fails the request"]
pub struct MergedBlockMetaCallback(ResponseSender);

impl MergedBlockMetaCallback {
    pub(crate) fn new(shared: Arc<SharedConnection>, request_id: i64) -> Self {
        Self(ResponseSender { shared, request_id, responded: false })
    }

    /// Sends a successful response with `num_chunks` serialized bitmaps.
    ///
    /// `protocol::put_bitmap` of the feature `merged-blocks` serializes one. A body larger than a
    /// frame fails the request.
    pub fn reply(mut self, num_chunks: i32, bitmaps: impl Into<ManagedBuffer>) {
        let body = bitmaps.into();
        if let Some(error) = check_frame_len(body.len()) {
            return self.0.fail(&error);
        }
        self.0.responded = true;
        let message =
            Message::MergedBlockMetaSuccess { request_id: self.0.request_id, num_chunks, body: () };
        // `respond_bulk` returns the response if the connection is closed.
        let (discarded, should_pause) = self.0.shared.respond(|session| {
            session.responded += 1;
            let discarded = session.respond_bulk(BulkMessage { message, body, upload: None });
            (discarded, session.should_pause_reading())
        });
        // Dropped outside the lock of the session, because the body may have release hooks.
        drop(discarded);
        self.0.recheck_read_pause(should_pause);
    }

    /// Fails the request; the caller gets the text `{error:#}`, at most 1 MiB of it.
    pub fn fail(mut self, error: impl fmt::Display) {
        self.0.fail(&error);
    }
}

impl fmt::Debug for MergedBlockMetaCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MergedBlockMetaCallback").field(&self.0.request_id).finish()
    }
}

/// Returns an error text if a response body of `size` bytes does not fit into a frame.
///
/// 64 bytes of the frame are reserved for the header.
pub(crate) fn check_frame_len(size: u64) -> Option<String> {
    (size > MAX_FRAME_PAYLOAD - 64).then(|| {
        format!(
            "a response body of {size} bytes does not fit into a frame of at most \
             {MAX_FRAME_PAYLOAD} bytes with a header"
        )
    })
}

/// Returns the text `{error:#}` for the peer, cut to at most 1 MiB.
pub(crate) fn cut_error(error: &dyn fmt::Display) -> String {
    let mut text = format!("{error:#}");
    if text.len() > MAX_ERROR_TEXT {
        let end = (0..=MAX_ERROR_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// Sends one response; sends a failure if it is dropped without a response.
struct ResponseSender {
    shared: Arc<SharedConnection>,
    request_id: i64,
    responded: bool,
}

impl ResponseSender {
    /// Queues the response and wakes the driver.
    fn respond(&mut self, message: impl FnOnce(i64) -> Message<()>, mut body: Bytes) {
        self.responded = true;
        let should_pause = self.shared.respond(|session| {
            session.respond(&message(self.request_id), &mut body);
            session.should_pause_reading()
        });
        self.recheck_read_pause(should_pause);
    }

    /// Makes the reader stop dispatching and check whether to pause, if `should_pause`.
    fn recheck_read_pause(&self, should_pause: bool) {
        if should_pause {
            self.shared.recheck_read_pause.store(true, Ordering::Relaxed);
        }
    }

    fn fail(&mut self, error: &dyn fmt::Display) {
        let error = cut_error(error);
        self.respond(|request_id| Message::RpcFailure { request_id, error }, Bytes::new());
    }
}

impl Drop for ResponseSender {
    fn drop(&mut self) {
        if !self.responded {
            self.fail(if std::thread::panicking() {
                &"the handler panicked"
            } else {
                &"the handler dropped the request without a response"
            });
        }
    }
}

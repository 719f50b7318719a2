//! Handles with which one request of a peer is answered, once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::buffer::ManagedBuffer;
use crate::client::SharedConnection;
use crate::protocol::{MAX_FRAME_PAYLOAD, Message};
use crate::session::BulkMessage;

/// Error texts sent to peers are cut to this many bytes.
const MAX_ERROR_TEXT: usize = 1 << 20;

/// Answers one RPC, from any thread and at any time. Dropped unanswered, it fails the asker.
///
/// Answering succeeds also when the asker or its connection has gone: there is nothing the answerer
/// could do about it.
#[must_use = "dropping it fails the asker"]
pub struct RpcResponseCallback(ResponseSender);

impl RpcResponseCallback {
    pub(crate) fn new(shared: Arc<SharedConnection>, request_id: i64) -> Self {
        Self(ResponseSender { shared, request_id, answered: false })
    }

    /// The id of the request on its connection, as the asker knows it too
    /// ([`RequestFuture::pending`](crate::RequestFuture::pending)).
    #[must_use]
    pub fn request_id(&self) -> i64 {
        self.0.request_id
    }

    /// Succeeds with `body`. One that does not fit into a frame fails the asker, naming both sizes.
    pub fn reply(mut self, body: impl Into<Bytes>) {
        let body = body.into();
        match check_frame_len(body.len() as u64) {
            None => {
                self.0.respond(|request_id| Message::RpcResponse { request_id, body: () }, body)
            }
            Some(error) => self.0.fail(&error),
        }
    }

    /// Fails; the asker sees the text of `error`.
    pub fn fail(mut self, error: impl fmt::Display) {
        self.0.fail(&error);
    }
}

impl fmt::Debug for RpcResponseCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RpcResponseCallback").field(&self.0.request_id).finish()
    }
}

/// Answers one question for merged block meta. Dropped unanswered, it fails the asker.
#[must_use = "dropping it fails the asker"]
pub struct MergedBlockMetaCallback(ResponseSender);

impl MergedBlockMetaCallback {
    pub(crate) fn new(shared: Arc<SharedConnection>, request_id: i64) -> Self {
        Self(ResponseSender { shared, request_id, answered: false })
    }

    /// Succeeds with `num_chunks` serialized bitmaps (see
    /// [`put_bitmap`](crate::protocol::put_bitmap)).
    pub fn reply(mut self, num_chunks: i32, bitmaps: impl Into<ManagedBuffer>) {
        let body = bitmaps.into();
        if let Some(error) = check_frame_len(body.len()) {
            return self.0.fail(&error);
        }
        self.0.answered = true;
        let message =
            Message::MergedBlockMetaSuccess { request_id: self.0.request_id, num_chunks, body: () };
        let (too_late, full) = self.0.shared.update(|session| {
            session.responded += 1;
            let too_late = session.respond_bulk(BulkMessage { message, body, upload: None });
            (too_late, session.should_pause_reading())
        });
        drop(too_late);
        self.0.recheck_read_pause(full);
    }

    /// Fails; the asker sees the text of `error`.
    pub fn fail(mut self, error: impl fmt::Display) {
        self.0.fail(&error);
    }
}

impl fmt::Debug for MergedBlockMetaCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MergedBlockMetaCallback").field(&self.0.request_id).finish()
    }
}

/// Why a body of `size` bytes cannot be an answer, if so.
pub(crate) fn check_frame_len(size: u64) -> Option<String> {
    (size > MAX_FRAME_PAYLOAD - 64).then(|| {
        format!("an answer of {size} bytes does not fit into a frame of at most {MAX_FRAME_PAYLOAD} bytes")
    })
}

/// The text of an error for the peer: cut to what a frame should carry.
pub(crate) fn cut_error(error: &dyn fmt::Display) -> String {
    let mut text = error.to_string();
    if text.len() > MAX_ERROR_TEXT {
        let end = (0..=MAX_ERROR_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

struct ResponseSender {
    shared: Arc<SharedConnection>,
    request_id: i64,
    answered: bool,
}

impl ResponseSender {
    fn respond(&mut self, message: impl FnOnce(i64) -> Message<()>, mut body: Bytes) {
        self.answered = true;
        let full = self.shared.update(|session| {
            session.respond(&message(self.request_id), &mut body);
            session.should_pause_reading()
        });
        self.recheck_read_pause(full);
    }

    /// Has the reader look whether the peer must wait before it takes in another request.
    fn recheck_read_pause(&self, full: bool) {
        if full {
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
        if !self.answered {
            self.fail(if std::thread::panicking() {
                &"the handler panicked"
            } else {
                &"the handler dropped the request without an answer"
            });
        }
    }
}

//! Uploads of the peer, each received by a task of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::{ConnectionDriver, SHUTTING_DOWN, catch_panic_async, log_panic};
use crate::error::TransportError;
use crate::handler::RpcResponseCallback;
use crate::log_limit::log_limited;
use crate::peer_text::LogText;
use crate::session::{BodySender, CloseRequest, body_channel};

impl ConnectionDriver {
    /// Passes an upload of `length` bytes to the handler.
    ///
    /// A new task waits for the handler and responds. Returns `None` if the handler panicked or the
    /// server is shutting down; the data is then discarded. The failure texts are those of
    /// `TransportRequestHandler.processStreamUpload`.
    pub(super) fn start_upload(
        &mut self,
        request_id: i64,
        meta: Bytes,
        length: u64,
    ) -> Option<BodySender> {
        self.reader.received_requests += 1;
        let callback = RpcResponseCallback::new(Arc::clone(&self.shared), request_id);
        if self.shared.is_draining() {
            callback.fail(SHUTTING_DOWN);
            return None;
        }
        let (sender, data) = body_channel(String::new(), length);
        sender.count_in(&self.resources.budget);
        let progress = sender.progress();
        let receive = || self.handler.receive_stream(&self.client, meta, data);
        let Ok(receiving) = catch_unwind(AssertUnwindSafe(receive)) else {
            log_panic("RpcHandler::receive_stream");
            callback.fail("the handler panicked");
            return None;
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            match catch_panic_async(receiving).await {
                Ok(reply) => {
                    // The peer is still sending the data that the handler has not read.
                    progress.wait_until_received().await;
                    callback.reply(reply);
                }
                Err(error) if progress.is_consumed() => callback.fail(format_args!(
                    "Failure post-processing complete stream; failing this rpc and leaving \
                     channel active: {error}"
                )),
                Err(error) => {
                    callback.fail(format_args!("Destination failed while reading stream: {error}"));
                    log_limited!(|suppressed| {
                        tracing::warn!(
                            suppressed,
                            peer = %shared.peer,
                            error = %LogText(error),
                            "closing the connection: the handler of an upload failed before it had \
                             read all data"
                        );
                    });
                    shared.close(CloseRequest::AfterFlush(TransportError::closed(shared.peer)));
                }
            }
        });
        Some(sender)
    }
}

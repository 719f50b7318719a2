//! [`RefusedRequest`], a request that the byte budget does not allow.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::RpcResponseCallback;
use crate::budget::SETTING;
use crate::client::SharedConnection;

/// The start of the failure of a request that may be repeated.
///
/// Clients recognise it, because the protocol has no other mark.
pub(crate) const REFUSED: &str = "Refused for now: ";

/// A request of a peer that was not received, because the [`ByteBudget`](crate::ByteBudget) does
/// not allow its size.
///
/// [`RpcHandler::on_refused_request`](super::RpcHandler::on_refused_request) gets it. Its
/// [`Display`](fmt::Display) is the reason. Dropping it fails the request with this text.
///
/// ```
/// use bytes::Bytes;
/// use network_common::{RefusedRequest, RpcHandler, RpcResponseCallback, TransportClient};
///
/// struct Echo;
///
/// impl RpcHandler for Echo {
///     fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
///         callback.reply(message);
///     }
///
///     fn on_refused_request(&self, client: &TransportClient, request: RefusedRequest) {
///         eprintln!("{} must repeat a request: {request}", client.peer_addr());
///     }
/// }
/// ```
pub struct RefusedRequest {
    reason: String,
    start: Bytes,
    length: u64,
    is_retryable: bool,
    callback: Option<RpcResponseCallback>,
}

impl RefusedRequest {
    pub(crate) fn new(
        shared: &Arc<SharedConnection>,
        request_id: Option<i64>,
        length: u64,
        start: Bytes,
    ) -> Self {
        let budget = &shared.account.budget;
        let max = budget.max_request();
        let is_retryable = length <= max;
        let reason = match is_retryable {
            true => format!("{REFUSED}a request of {length} bytes; {}", budget.limit_text()),
            false => format!(
                "a request of {length} bytes exceeds the limit of {max} bytes, which follows from \
                 {SETTING} = {}",
                budget.limit()
            ),
        };
        let callback = request_id.map(|id| RpcResponseCallback::new(Arc::clone(shared), id));
        Self { reason, start, length, is_retryable, callback }
    }

    /// Returns the first bytes of the message, at most 4 KiB; none of an upload.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// Returns the number of bytes of the message, or of the header of an upload.
    #[must_use]
    pub fn message_len(&self) -> u64 {
        self.length
    }

    /// Returns whether a repetition may succeed; not if the request is too large for an
    /// empty budget.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.is_retryable
    }

    /// Takes the callback, with which another response can be sent; one-way messages have none.
    pub fn take_callback(&mut self) -> Option<RpcResponseCallback> {
        self.callback.take()
    }
}

/// Returns whether a peer has refused a request that may be repeated.
pub(crate) fn is_refusal(failure: &str) -> bool {
    failure.starts_with(REFUSED)
}

impl Drop for RefusedRequest {
    fn drop(&mut self) {
        if let Some(callback) = self.callback.take() {
            callback.fail(&self.reason);
        }
    }
}

impl fmt::Display for RefusedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl fmt::Debug for RefusedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedRequest")
            .field("reason", &self.reason)
            .field("callback", &self.callback)
            .finish_non_exhaustive()
    }
}

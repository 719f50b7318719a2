//! The code and the details that an endpoint adds to an error, and its caller reads.

use bytes::Bytes;
use network_common::log_limited;
use prost::Message;

use super::RpcError;

/// The most bytes of the [details](RpcError::with_details) of an error: 64 KiB.
const MAX_DETAILS: usize = 64 << 10;

impl RpcError {
    /// Sets a code by which the caller distinguishes the failures of a service.
    ///
    /// `code` is a number or an enum of the `.proto` file. The caller reads it with
    /// [`code`](Self::code), in the same process and in others. See
    /// [`with_details`](Self::with_details) for an example. If the error is the result of an ask
    /// that the handler made itself, it becomes a failure of the handler, as by
    /// [`retryable`](Self::retryable); the handler that returns it unchanged passes on its code and
    /// its details.
    #[must_use]
    pub fn with_code(self, code: impl Into<i32>) -> Self {
        let code = code.into();
        self.into_handler_failure().change(|inner| inner.code = Some(code))
    }

    /// Attaches a message with details, which the caller reads with [`details`](Self::details).
    ///
    /// At most 64 KiB when encoded. Larger details are left out, and a warning is logged. With the
    /// code and the text they count in `spark.rpc.message.maxSize`.
    ///
    /// ```
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::Greeting;
    /// use rpc_core::RpcError;
    ///
    /// const QUEUE_FULL: i32 = 3;
    ///
    /// // In the endpoint:
    /// let queue = Greeting { text: "the queue holds 100 tasks".to_owned() };
    /// let error = RpcError::application("no task accepted").with_code(QUEUE_FULL).with_details(&queue);
    ///
    /// // At the caller, for a local and for a remote endpoint:
    /// assert_eq!(error.code(), Some(QUEUE_FULL));
    /// assert_eq!(error.details::<Greeting>(), Some(queue));
    /// ```
    #[must_use]
    pub fn with_details(self, details: &impl Message) -> Self {
        let details = Bytes::from(details.encode_to_vec());
        let len = details.len();
        if len > MAX_DETAILS {
            log_limited!(|suppressed| tracing::warn!(
                suppressed,
                len,
                limit = MAX_DETAILS,
                "the details of an error are left out"
            ));
            return self;
        }
        self.into_handler_failure().change(|inner| inner.details = Some(details))
    }

    /// Returns the code that the endpoint set by [`with_code`](Self::with_code).
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.inner.code
    }

    /// Returns the details that the endpoint attached by [`with_details`](Self::with_details).
    ///
    /// `None` if there are none, or they are not a `T`. Protobuf messages do not name their type,
    /// so let the [code](Self::code) determine `T`. Like every value of a peer, the details may
    /// have any content.
    #[must_use]
    pub fn details<T: Message + Default>(&self) -> Option<T> {
        T::decode(self.inner.details.clone()?).ok()
    }

    /// Sets the code and the encoded details. Details over the limit are left out.
    pub(crate) fn with_payload(self, code: Option<i32>, details: Option<Bytes>) -> Self {
        if code.is_none() && details.is_none() {
            return self;
        }
        self.change(|inner| {
            inner.code = code;
            inner.details = details.filter(|details| details.len() <= MAX_DETAILS);
        })
    }

    /// Returns the encoded details.
    pub(crate) fn encoded_details(&self) -> Option<&Bytes> {
        self.inner.details.as_ref()
    }
}

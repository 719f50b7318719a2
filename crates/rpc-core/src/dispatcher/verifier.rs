//! The endpoint that serves the lookups of other environments (Spark's `RpcEndpointVerifier`).

use std::sync::Weak;

use super::Dispatcher;
use crate::endpoint::{EndpointContext, RpcEndpoint};
use crate::error::RpcError;
use crate::wire::proto::{CheckExistenceReply, EndpointVerifierMessage};

/// Reports whether a name is registered, and which services its endpoint serves.
///
/// Every environment that listens registers it under
/// [`ENDPOINT_VERIFIER`](crate::wire::ENDPOINT_VERIFIER).
pub(crate) struct EndpointVerifier {
    /// Weak, because the dispatcher owns the verifier.
    pub(crate) dispatcher: Weak<Dispatcher>,
}

impl RpcEndpoint for EndpointVerifier {
    type Message = EndpointVerifierMessage;

    async fn receive(
        &self,
        message: EndpointVerifierMessage,
        _cx: &EndpointContext<EndpointVerifierMessage>,
    ) -> Result<(), RpcError> {
        let EndpointVerifierMessage::CheckExistence(check, context) = message;
        let services =
            self.dispatcher.upgrade().and_then(|dispatcher| dispatcher.services(&check.endpoint));
        context.reply(CheckExistenceReply {
            exists: services.is_some(),
            services: services
                .unwrap_or_default()
                .iter()
                .map(|&service| service.to_owned())
                .collect(),
        })
    }
}

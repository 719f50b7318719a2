//! The endpoint that lookups ask.

use std::sync::Weak;

use crate::dispatcher::Dispatcher;
use crate::endpoint::{EndpointContext, RpcEndpoint};
use crate::error::RpcError;
use crate::wire::proto::{CheckExistenceReply, EndpointVerifierMessage};

/// Tells whether a name is registered, and which services its endpoint serves. Registered in server
/// mode.
pub(crate) struct EndpointVerifier {
    /// The dispatcher runs the verifier, so the verifier must not keep it.
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

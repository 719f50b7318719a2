//! From addresses and messages to refs.

use std::sync::Arc;

use super::{Inner, RpcEnv};
use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::About;
use crate::dispatcher::{endpoint_not_found, service_mismatch};
use crate::endpoint_ref::RpcEndpointRef;
use crate::error::{ErrorKind, RpcError};
use crate::message::{RpcMessage, local_only};
use crate::ref_message::EndpointRef;
use crate::verifier::EndpointVerifier;
use crate::wire::proto::{CheckExistence, EndpointVerifierMessage};
use crate::wire::request_head;

impl RpcEnv {
    /// Looks up the endpoint `name` of the environment at `address` and checks that it receives `M`.
    ///
    /// Asks the endpoint verifier there and waits as long as `spark.rpc.lookupTimeout` says. The ref of an endpoint
    /// of this environment itself is a local one: its messages are not encoded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointNotFound`]; [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than
    /// those of `M`; [`ErrorKind::LocalOnly`] if `M` has none; [`ErrorKind::Timeout`] and [`ErrorKind::Network`].
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub async fn setup_endpoint_ref<M: RpcMessage>(
        &self,
        address: RpcAddress,
        name: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        self.inner.look_up(address, name).await.map_err(RpcError::received)
    }

    /// The typed ref of an endpoint that a message told of, without asking anybody whether it is there.
    ///
    /// The ref of an endpoint of this environment itself is a local one. That of an endpoint whose environment does not
    /// listen goes over the connection which that environment has made to this one; when it ends, so does the use of
    /// the ref.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Address`] if the message names no endpoint, or its address is none;
    /// [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`;
    /// [`ErrorKind::LocalOnly`] if `M` has none; [`ErrorKind::EndpointNotFound`] if it is to be in this environment and
    /// is not; [`ErrorKind::Network`] if its environment does not listen and is not connected to this one.
    pub fn resolve<M: RpcMessage>(&self, endpoint: &EndpointRef) -> Result<RpcEndpointRef<M>, RpcError> {
        self.inner.resolve(endpoint).map_err(RpcError::received)
    }
}

fn check_services<M: RpcMessage>(endpoint: &RpcEndpointAddress, served: &[String]) -> Result<(), RpcError> {
    if M::SERVICES.iter().all(|service| served.iter().any(|other| other == service)) {
        return Ok(());
    }
    // A peer may claim any number of them.
    let served: Vec<&str> = served.iter().take(16).map(String::as_str).collect();
    Err(service_mismatch(endpoint, M::SERVICES, &served))
}

impl Inner {
    async fn look_up<M: RpcMessage>(
        &self,
        address: RpcAddress,
        name: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let endpoint = RpcEndpointAddress::new(Some(address.clone()), name)?;
        if self.address.as_ref() == Some(&address) {
            return self.local_ref(endpoint);
        }
        if M::SERVICES.is_empty() {
            return Err(local_only());
        }
        let verifier = RpcEndpointAddress::new(Some(address.clone()), EndpointVerifier::NAME)?;
        let verifier = self.remote_ref::<EndpointVerifierMessage>(verifier, &address, 0);
        let check = CheckExistence { endpoint: name.to_owned() };
        let found = verifier.ask_with_timeout(check, self.lookup_timeout.clone()).await?;
        if !found.exists {
            return Err(endpoint_not_found(&endpoint));
        }
        check_services::<M>(&endpoint, &found.services)?;
        Ok(self.remote_ref(endpoint, &address, 0))
    }

    fn resolve<M: RpcMessage>(&self, endpoint: &EndpointRef) -> Result<RpcEndpointRef<M>, RpcError> {
        let address = match endpoint.address() {
            "" => None,
            address => Some(address.parse::<RpcAddress>()?),
        };
        let full = RpcEndpointAddress::new(address.clone(), endpoint.name())?;
        if endpoint.incarnation == self.incarnation {
            return self.local_ref(full);
        }
        if M::SERVICES.is_empty() {
            return Err(local_only());
        }
        check_services::<M>(&full, &endpoint.services)?;
        match address {
            Some(address) => Ok(self.remote_ref(full, &address, endpoint.incarnation)),
            None => self.connected_ref(full, endpoint.incarnation),
        }
    }

    fn local_ref<M: RpcMessage>(&self, endpoint: RpcEndpointAddress) -> Result<RpcEndpointRef<M>, RpcError> {
        let mailbox = self.dispatcher.inbox::<M>(&endpoint)?;
        Ok(RpcEndpointRef::local(endpoint, self.incarnation, Arc::clone(&self.asks), mailbox))
    }

    /// The ref of an endpoint at `address`, not checked.
    fn remote_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        address: &RpcAddress,
        incarnation: u64,
    ) -> RpcEndpointRef<M> {
        let lane = Arc::new(self.outboxes.get(address).lane(endpoint.name()));
        let head = request_head(self.address.as_ref(), self.incarnation, endpoint.name());
        let mut about = About::new(endpoint, Arc::clone(&self.asks));
        about.incarnation = incarnation;
        RpcEndpointRef::remote(about, lane, head)
    }

    /// The ref of an endpoint whose environment does not listen, over the connection it has made.
    fn connected_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        incarnation: u64,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let Some(link) = self.links.of_incarnation(incarnation) else {
            let text = format!(
                "{endpoint} is in an environment that does not listen, and it is not connected to this one"
            );
            return Err(RpcError::new(ErrorKind::Network, text).with_peer(&endpoint));
        };
        let lane = Arc::new(self.outboxes.over(&link).lane(endpoint.name()));
        let head = request_head(self.address.as_ref(), self.incarnation, endpoint.name());
        let mut about = About::new(endpoint, Arc::clone(&self.asks));
        about.incarnation = incarnation;
        about.socket = Some(link.socket().clone());
        Ok(RpcEndpointRef::remote(about, lane, head))
    }
}

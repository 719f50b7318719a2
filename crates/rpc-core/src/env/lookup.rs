//! From addresses and messages to refs.

use std::sync::Arc;

use super::{EnvInner, RpcEnv};
use crate::address::{RpcAddress, RpcEndpointAddress};
use crate::ask::EndpointInfo;
use crate::dispatcher::endpoint_not_found;
use crate::endpoint::EndpointRef;
use crate::endpoint::RpcEndpointRef;
use crate::endpoint::{RpcMessage, local_only};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::service_mismatch;
use crate::peer::stale_incarnation_error;
use crate::wire::ENDPOINT_VERIFIER;
use crate::wire::proto::{CheckExistence, EndpointVerifierMessage};

impl RpcEnv {
    /// Looks up the endpoint `name` of the environment at `address` and checks that it receives
    /// `M`.
    ///
    /// Asks the endpoint verifier there and waits as long as `spark.rpc.lookupTimeout` says (`rpc
    /// 6`). The ref of an endpoint of this environment itself is a local one: its messages are not
    /// encoded.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::EndpointNotFound`]; [`ErrorKind::ServiceMismatch`] if the endpoint serves other
    /// services than those of `M`; [`ErrorKind::LocalOnly`] if `M` has none; [`ErrorKind::Timeout`]
    /// and [`ErrorKind::Network`].
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub async fn setup_endpoint_ref<M: RpcMessage>(
        &self,
        address: RpcAddress,
        name: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        self.inner.look_up(address, name).await.map_err(RpcError::mark_as_result)
    }

    /// [`setup_endpoint_ref`](Self::setup_endpoint_ref) of the endpoint at `uri`, which is
    /// `spark://name@host:port`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `uri` is not of that form, and those of
    /// [`setup_endpoint_ref`](Self::setup_endpoint_ref).
    ///
    /// # Cancel safety
    ///
    /// Can be dropped at any time.
    pub async fn setup_endpoint_ref_by_uri<M: RpcMessage>(
        &self,
        uri: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let invalid =
            || RpcError::new(ErrorKind::InvalidAddress, format!("Invalid Spark URL: {uri}"));
        let endpoint: RpcEndpointAddress = uri.parse()?;
        let address = endpoint.address().ok_or_else(invalid)?.clone();
        self.setup_endpoint_ref(address, endpoint.name()).await
    }

    /// The typed ref of an endpoint that a message told of, without asking anybody whether it is
    /// there (`rpc 6.3`).
    ///
    /// The ref of an endpoint of this environment itself is a local one. That of an endpoint whose
    /// environment does not listen goes over the connection which that environment has made to this
    /// one; when it ends, what waits for an answer fails, and so does everything later
    /// ([`ErrorKind::Network`]).
    ///
    /// The ref stands for the endpoint of one run of its environment. When another run listens at
    /// the address, that refuses what is sent ([`ErrorKind::Stopped`]): it knows nothing of what
    /// was agreed with its predecessor. To reach whichever run is there, [look the endpoint
    /// up](Self::setup_endpoint_ref); the ref of somebody who had looked it up says nothing about
    /// the run either.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if the message names no endpoint, or its address is none;
    /// [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`, or
    /// receives in this very environment a message of which `M` is a part: then resolve it as what
    /// it receives and [narrow](RpcEndpointRef::narrow) that; [`ErrorKind::LocalOnly`] if `M` has
    /// no services; [`ErrorKind::EndpointNotFound`] if it is to be in this environment and is not;
    /// [`ErrorKind::Stopped`] if it was in an earlier run of this environment;
    /// [`ErrorKind::Network`] if its environment does not listen and is not connected to this one.
    pub fn resolve<M: RpcMessage>(
        &self,
        endpoint: &EndpointRef,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        self.inner.resolve(endpoint).map_err(RpcError::mark_as_result)
    }
}

fn check_services<M: RpcMessage>(
    endpoint: &RpcEndpointAddress,
    served: &[String],
) -> Result<(), RpcError> {
    if M::SERVICES.iter().all(|service| served.iter().any(|other| other == service)) {
        return Ok(());
    }
    let served: Vec<&str> = served.iter().map(String::as_str).collect();
    Err(service_mismatch(endpoint, M::SERVICES, &served))
}

impl EnvInner {
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
        let verifier = RpcEndpointAddress::new(Some(address.clone()), ENDPOINT_VERIFIER)?;
        let verifier = self.remote_ref::<EndpointVerifierMessage>(verifier, &address, 0);
        let check = CheckExistence { endpoint: name.to_owned() };
        let found = verifier.ask_with_timeout(check, self.lookup_timeout.clone()).await?;
        if !found.exists {
            return Err(endpoint_not_found(&endpoint));
        }
        check_services::<M>(&endpoint, &found.services)?;
        Ok(self.remote_ref(endpoint, &address, 0))
    }

    fn resolve<M: RpcMessage>(
        &self,
        endpoint: &EndpointRef,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let address = match endpoint.address() {
            "" => None,
            address => Some(address.parse::<RpcAddress>()?),
        };
        let full = RpcEndpointAddress::new(address.clone(), endpoint.name())?;
        let at_home = address.is_some() && address == self.address;
        if endpoint.incarnation == self.incarnation || (at_home && endpoint.incarnation == 0) {
            return self.local_ref(RpcEndpointAddress::new(self.address.clone(), endpoint.name())?);
        }
        if let (true, Some(address)) = (at_home, &address) {
            return Err(stale_incarnation_error(endpoint.name(), address).with_peer(&full));
        }
        if M::SERVICES.is_empty() {
            return Err(local_only());
        }
        check_services::<M>(&full, &endpoint.services)?;
        match address {
            Some(address) => Ok(self.remote_ref(full, &address, endpoint.incarnation)),
            None => self.inbound_ref(full, endpoint.incarnation),
        }
    }

    fn local_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        Ok(self.dispatcher.inbox::<M>(&endpoint)?.make_ref())
    }

    /// The ref of an endpoint at `address`, unchecked.
    fn remote_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        address: &RpcAddress,
        incarnation: u64,
    ) -> RpcEndpointRef<M> {
        let route = self.peers.route(self.peers.peer(address), endpoint.name(), incarnation);
        RpcEndpointRef::remote(
            EndpointInfo::new(endpoint, Arc::clone(&self.asks), incarnation),
            route,
        )
    }

    /// The ref of an endpoint whose environment does not listen, over the connection that this
    /// environment opened.
    fn inbound_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        incarnation: u64,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        if incarnation == 0 {
            let text = format!(
                "{endpoint} says neither where its environment listens nor which one it is"
            );
            return Err(RpcError::new(ErrorKind::InvalidAddress, text).with_peer(&endpoint));
        }
        let connection = self.connections.of_incarnation(incarnation);
        let connected = connection.and_then(|connection| {
            Some((self.peers.connected_peer(&connection)?, connection.socket.clone()))
        });
        let Some((peer, socket)) = connected else {
            let text = format!(
                "{endpoint} is in an environment that does not listen, and it is not connected to this one"
            );
            return Err(RpcError::new(ErrorKind::Network, text).with_peer(&endpoint));
        };
        let route = self.peers.route(peer, endpoint.name(), incarnation);
        let mut about = EndpointInfo::new(endpoint, Arc::clone(&self.asks), incarnation);
        about.socket = Some(socket);
        Ok(RpcEndpointRef::remote(about, route))
    }
}

//! Lookup of endpoints by address and name, and refs from [`EndpointRef`] fields.

use std::sync::Arc;

use super::{EnvInner, RpcEnv};
use crate::address::{IntoRpcAddress, RpcAddress, RpcEndpointAddress};
use crate::ask::EndpointInfo;
use crate::dispatcher::endpoint_not_found_error;
use crate::endpoint::{EndpointRef, RpcEndpointRef, RpcMessage, local_only_error};
use crate::error::{ErrorKind, RpcError};
use crate::inbox::service_mismatch_error;
use crate::peer::stale_incarnation_error;
use crate::peer_text::peer_name;
use crate::wire::ENDPOINT_VERIFIER;
use crate::wire::proto::{CheckExistence, EndpointVerifierMessage};

impl RpcEnv {
    /// Looks up an endpoint of another environment and returns a ref to it.
    ///
    /// Asks the environment at `address` whether an endpoint is registered under `name`, and checks
    /// that it receives `M`. Waits at most `spark.rpc.lookupTimeout`. `address` is `"host:port"`, a
    /// pair `(host, port)` or an [`RpcAddress`]. If this environment has the address, the ref is
    /// local: its messages are not encoded.
    ///
    /// The ref means the endpoint of that name in whichever process listens on the address, also
    /// after a restart.
    ///
    /// ```
    /// # use rpc_core::{EndpointContext, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
    /// # mod hello { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/generated/hello.rs")); }
    /// # use hello::{Greeting, HelloMessage, SayHi};
    /// # struct Hello;
    /// # impl ThreadSafeRpcEndpoint for Hello {
    /// #     type Message = HelloMessage;
    /// #     async fn receive(
    /// #         &mut self,
    /// #         message: HelloMessage,
    /// #         _: &EndpointContext<HelloMessage>,
    /// #     ) -> Result<(), RpcError> {
    /// #         match message {
    /// #             HelloMessage::SayHi(hi, context) => context.reply(Greeting { text: hi.msg }),
    /// #             HelloMessage::SayBye(bye, context) => context.reply(Greeting { text: bye.msg }),
    /// #         }
    /// #     }
    /// # }
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), RpcError> {
    /// # let server = RpcEnv::builder("server").bind("127.0.0.1:0").start().await?;
    /// # server.setup_endpoint("hello", Hello)?;
    /// # let port = server.address().expect("listens").port();
    /// # let client = RpcEnv::builder("client").client_mode().start().await?;
    /// let hello = client.lookup::<HelloMessage>(("127.0.0.1", port), "hello").await?;
    /// let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    /// # assert_eq!(greeting.text, "neo");
    /// # client.shutdown().await;
    /// # server.shutdown().await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::InvalidAddress`] if `address` or `name` is not valid.
    /// * [`ErrorKind::EndpointNotFound`] if no endpoint is registered under `name`.
    /// * [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`.
    /// * [`ErrorKind::LocalOnly`] if `M` has no schema.
    /// * [`ErrorKind::Timeout`], [`ErrorKind::Network`] or [`ErrorKind::Authentication`] if the
    ///   environment does not respond, cannot be reached or is not trusted.
    /// * [`ErrorKind::Stopped`] if this environment has shut down.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup.
    pub async fn lookup<M: RpcMessage>(
        &self,
        address: impl IntoRpcAddress,
        name: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let address = address.into_rpc_address()?;
        self.inner.look_up(address, name).await.map_err(RpcError::mark_as_result)
    }

    /// Does the same as [`lookup`](Self::lookup), under the name of `RpcEnv` in Spark.
    ///
    /// # Errors
    ///
    /// Those of [`lookup`](Self::lookup).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup.
    pub async fn setup_endpoint_ref<M: RpcMessage>(
        &self,
        address: impl IntoRpcAddress,
        name: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        self.lookup(address, name).await
    }

    /// Looks up the endpoint at `spark://name@host:port`, as [`lookup`](Self::lookup) does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `uri` does not have that form, and those of
    /// [`lookup`](Self::lookup).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the lookup.
    pub async fn setup_endpoint_ref_by_uri<M: RpcMessage>(
        &self,
        uri: &str,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        let invalid = || {
            let text = format!("Invalid Spark URL: {}", peer_name(uri));
            RpcError::new(ErrorKind::InvalidAddress, text)
        };
        let endpoint: RpcEndpointAddress = uri.parse()?;
        let address = endpoint.address().ok_or_else(invalid)?;
        self.lookup(address, endpoint.name()).await
    }

    /// Returns the typed ref of an endpoint from a field of a message, without a lookup.
    ///
    /// The ref of an endpoint of this environment is local. If the environment of the endpoint does
    /// not listen, the ref uses the connection that this environment has made to this one. When
    /// that connection ends, pending asks and all later messages fail with [`ErrorKind::Network`].
    ///
    /// The ref means the endpoint in one incarnation (one run) of its environment. A later
    /// incarnation at the same address rejects its messages with [`ErrorKind::Stopped`], because it
    /// has not the state of the earlier one. A ref from [`lookup`](Self::lookup) means the address;
    /// this also holds when it was sent in a message before.
    ///
    /// # Errors
    ///
    /// * [`ErrorKind::InvalidAddress`] if the field has no name or an address that is not valid.
    /// * [`ErrorKind::ServiceMismatch`] if the endpoint serves other services than those of `M`. An
    ///   endpoint of this environment must receive exactly `M`: resolve it as what it receives, and
    ///   [narrow](RpcEndpointRef::narrow) the ref.
    /// * [`ErrorKind::LocalOnly`] if `M` has no schema.
    /// * [`ErrorKind::EndpointNotFound`] if it is no longer registered in this environment.
    /// * [`ErrorKind::Stopped`] if it belonged to an earlier incarnation of this environment.
    /// * [`ErrorKind::Network`] if its environment does not listen and is not connected.
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
    Err(service_mismatch_error(endpoint, M::SERVICES, &served))
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
            return Err(local_only_error());
        }
        let verifier = RpcEndpointAddress::new(Some(address.clone()), ENDPOINT_VERIFIER)?;
        let verifier = self.remote_ref::<EndpointVerifierMessage>(verifier, &address, 0);
        let check = CheckExistence { endpoint: name.to_owned() };
        let found = verifier.ask_with_timeout(check, self.lookup_timeout.clone()).await?;
        if !found.exists {
            return Err(endpoint_not_found_error(&endpoint));
        }
        check_services::<M>(&endpoint, &found.services)?;
        // Another address of this environment: a ref to a part of `M` is remote nevertheless.
        if self.peers.peer(&address).incarnation() == Some(self.incarnation)
            && let Ok(local) = self.local_ref(endpoint.clone())
        {
            return Ok(local);
        }
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
        let is_local = address.is_some() && address == self.address;
        if endpoint.incarnation == self.incarnation || (is_local && endpoint.incarnation == 0) {
            return self.local_ref(RpcEndpointAddress::new(self.address.clone(), endpoint.name())?);
        }
        if let (true, Some(address)) = (is_local, &address) {
            return Err(stale_incarnation_error(endpoint.name(), address).with_peer(&full));
        }
        if M::SERVICES.is_empty() {
            return Err(local_only_error());
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

    /// Returns the ref of an endpoint at `address`, without a check.
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

    /// Returns the ref of an endpoint whose environment does not listen.
    ///
    /// It uses the connection that the environment of the endpoint has made to this one.
    fn inbound_ref<M: RpcMessage>(
        &self,
        endpoint: RpcEndpointAddress,
        incarnation: u64,
    ) -> Result<RpcEndpointRef<M>, RpcError> {
        if incarnation == 0 {
            let endpoint = endpoint.to_string();
            let shown = peer_name(&endpoint);
            let text = format!("the ref of {shown} has neither an address nor an incarnation");
            return Err(RpcError::new(ErrorKind::InvalidAddress, text).with_peer(&endpoint));
        }
        let connection = self.connections.of_incarnation(incarnation);
        let connected = connection.and_then(|connection| {
            Some((self.peers.connected_peer(&connection)?, connection.socket.clone()))
        });
        let Some((peer, socket)) = connected else {
            let text = format!(
                "{} cannot be reached: its environment does not listen, and is not connected to \
                 this one",
                peer_name(&endpoint.to_string())
            );
            return Err(RpcError::new(ErrorKind::Network, text).with_peer(&endpoint));
        };
        let route = self.peers.route(peer, endpoint.name(), incarnation);
        let mut info = EndpointInfo::new(endpoint, Arc::clone(&self.asks), incarnation);
        info.socket = Some(socket);
        Ok(RpcEndpointRef::remote(info, route))
    }
}

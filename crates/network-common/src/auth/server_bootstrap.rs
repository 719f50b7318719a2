//! The server end of authentication: limits the number and the duration of handshakes.
//!
//! `AuthPolicy` adds this bootstrap to the servers of a context.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::AuthPolicy;
use super::rpc_handler::{AuthRpcHandler, close_after_flush};
use super::server_handshake::ServerHandshake;
use crate::client::TransportClient;
use crate::error::{BoxError, ErrorKind, TransportError};
use crate::handler::{RpcHandler, TransportServerBootstrap};

/// Makes every accepted connection authenticate.
///
/// It replaces Spark's `AuthServerBootstrap` and `SaslServerBootstrap`; the settings and the
/// client's first message choose the protocol.
pub(super) struct AuthServerBootstrap(Arc<AuthPolicy>);

impl AuthServerBootstrap {
    pub(super) fn new(policy: Arc<AuthPolicy>) -> Self {
        Self(policy)
    }
}

impl TransportServerBootstrap for AuthServerBootstrap {
    fn do_bootstrap(
        &self,
        client: &TransportClient,
        handler: Arc<dyn RpcHandler>,
    ) -> Result<Arc<dyn RpcHandler>, BoxError> {
        let policy = &self.0;
        let permit = Arc::clone(&policy.handshake_permits).try_acquire_owned().map_err(|_| {
            let (setting, limit) = (&policy.permits_setting, policy.conf.max_handshakes);
            format!("{limit} connections are not authenticated yet, the limit of {setting}")
        })?;
        client.shared().require_authentication();
        let (done_sender, done_receiver) = oneshot::channel();
        let (timeout, client) = (policy.conf.rpc_timeout(), client.clone());
        tokio::spawn(async move {
            // If the connection closes first, the sender is dropped and the task ends, too.
            if tokio::time::timeout(timeout, done_receiver).await.is_err() {
                let peer = client.peer_addr();
                let text = format!(
                    "{peer} did not authenticate within {timeout:?}. This timeout is controlled \
                     by spark.network.auth.rpcTimeout"
                );
                let error = TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer);
                close_after_flush(&client, error);
            }
            drop(permit);
        });
        let handshake = ServerHandshake::new(Arc::clone(policy));
        Ok(Arc::new(AuthRpcHandler::server(handler, handshake, done_sender)))
    }
}

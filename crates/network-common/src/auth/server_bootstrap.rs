//! The server end of authentication: limits the number and the duration of handshakes.
//!
//! `AuthPolicy` adds this bootstrap to the servers of a context.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::error::Elapsed;

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
        let policy = Arc::clone(&self.0);
        let permit = Arc::clone(&policy.handshake_permits).try_acquire_owned().ok();
        client.shared().require_authentication();
        // Before the first byte is read.
        client.shared().update(|session| session.is_handshake_queued = permit.is_none());
        tokio::spawn(supervise(policy, client.clone(), permit));
        let handshake = ServerHandshake::new(Arc::clone(&self.0));
        Ok(Arc::new(AuthRpcHandler::server(handler, handshake)))
    }
}

/// Waits for a permit, and closes the connection if it is not authenticated in time.
///
/// The permit is kept until the peer has proved that it knows the secret. A peer that waits for a
/// permit is not read.
async fn supervise(
    policy: Arc<AuthPolicy>,
    client: TransportClient,
    permit: Option<OwnedSemaphorePermit>,
) {
    let timeout = policy.conf.rpc_timeout();
    let handshake = async {
        let permit = match permit {
            Some(permit) => Some(permit),
            None => {
                let permit = Arc::clone(&policy.handshake_permits).acquire_owned();
                let permit = tokio::time::timeout(timeout, permit).await?.ok();
                client.shared().update(|session| session.is_handshake_queued = false);
                permit
            }
        };
        tokio::time::timeout(timeout, client.shared().wait_until_proved()).await?;
        drop(permit);
        Ok::<_, Elapsed>(())
    };
    let is_timed_out = tokio::select! {
        biased;
        result = handshake => result.is_err(),
        _ = client.closed() => false,
    };
    if is_timed_out {
        let peer = client.peer_addr();
        let reason = if client.shared().session.lock().is_handshake_queued {
            let (setting, limit) = (&policy.permits_setting, policy.conf.max_handshakes);
            format!("it waited for one of the {limit} handshakes that {setting} allows")
        } else if client.shared().awaits_sealed_frame() {
            "it sent no encrypted message after its handshake".to_owned()
        } else {
            "it did not complete its handshake".to_owned()
        };
        let text = format!(
            "{peer} did not authenticate within {timeout:?}: {reason}. This timeout is controlled \
             by spark.network.auth.rpcTimeout"
        );
        close_after_flush(&client, TransportError::new(ErrorKind::Bootstrap, text).with_peer(peer));
    }
}

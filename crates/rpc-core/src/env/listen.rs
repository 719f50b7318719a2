//! Binds the server of an environment to the requested port, or to one of the next ports.

use std::error::Error;
use std::io;

use network_common::{TransportContext, TransportError, TransportServer};

use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};

/// The lowest port that needs no special rights.
pub(super) const FIRST_PORT: u16 = 1024;

/// Binds a server. If the port is in use, tries at most `max_retries` next ports.
///
/// Port 0 binds any free port. The counterpart in Spark is `Utils.startServiceOnPort`.
pub(super) async fn listen(
    context: &TransportContext,
    bind: &RpcAddress,
    env: &str,
    max_retries: u32,
) -> Result<TransportServer, RpcError> {
    let start = bind.port();
    if (1..FIRST_PORT).contains(&start) {
        let text = format!(
            "the environment {env} cannot bind {bind}: the port must be from {FIRST_PORT} to \
             65535, or 0 for any free port"
        );
        return Err(RpcError::new(ErrorKind::Config, text));
    }
    let mut retry = 0;
    loop {
        let port = port_of_attempt(start, retry);
        let error = match context.create_server((bind.host(), port)).await {
            Ok(server) => return Ok(server),
            Err(error) => error,
        };
        if !is_address_in_use(&error) {
            return Err(RpcError::from_transport(error, bind));
        }
        if retry == max_retries {
            let text = format!(
                "the environment {env} cannot listen on {bind} or a port after it: all were in use \
                 after {max_retries} retries (spark.port.maxRetries)"
            );
            return Err(RpcError::new(ErrorKind::Bind, text).with_peer(bind).with_source(error));
        }
        retry += 1;
        let next = port_of_attempt(start, retry);
        tracing::warn!(env, host = bind.host(), port, "the port is in use, trying port {next}");
    }
}

/// Returns `start` plus `retry`, where port 1024 follows port 65535. Returns 0 for 0.
fn port_of_attempt(start: u16, retry: u32) -> u16 {
    if start == 0 {
        return 0;
    }
    let (first, port_count) = (u32::from(FIRST_PORT), 65_536 - u32::from(FIRST_PORT));
    let offset = (u32::from(start) - first + retry % port_count) % port_count;
    (first + offset) as u16
}

fn is_address_in_use(error: &TransportError) -> bool {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::port_of_attempt;

    #[test]
    fn rpc_env_25_ports_go_round_from_the_last_to_the_first() {
        let attempts = |start| [0, 1, 2, 64_512].map(|retry| port_of_attempt(start, retry));
        assert_eq!(attempts(7077), [7077, 7078, 7079, 7077]);
        assert_eq!(attempts(65_535), [65_535, 1024, 1025, 65_535]);
        assert_eq!(attempts(0), [0; 4]);
    }
}

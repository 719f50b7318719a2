//! Contexts for bulk data beside an environment.

use network_common::{RpcHandler, TransportConf, TransportContext};

use super::RpcEnv;
use crate::error::RpcError;

impl RpcEnv {
    /// Returns a transport context with the settings and the security of this environment.
    ///
    /// It is for bulk data beside the messages, with ports and connections of its own. `module`
    /// selects settings, such as `spark.shuffle.io.*` for `shuffle`. The secrets and certificates
    /// are those of this environment, and so are its byte budget and its
    /// [`MemoryNetwork`](crate::MemoryNetwork), if it has one. Servers and clients of the context
    /// live on after the shutdown of the environment.
    ///
    /// ```
    /// # use network_common::NoOpRpcHandler;
    /// # use rpc_core::RpcEnv;
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let env = RpcEnv::builder("server").bind("127.0.0.1:0").start().await?;
    /// let context = env.transport_context("shuffle", NoOpRpcHandler::new())?;
    /// let server = context.create_server("127.0.0.1:0").await?;
    /// println!("bulk data at {}", server.local_addr());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if a setting of `module` is not valid.
    pub fn transport_context(
        &self,
        module: &str,
        handler: impl RpcHandler,
    ) -> Result<TransportContext, RpcError> {
        let inner = &self.inner;
        let conf = TransportConf::from_settings(module, inner.conf.settings_of(module))
            .map_err(RpcError::config)?;
        let context = TransportContext::new(conf, handler)
            .share_security_with(&inner.context)
            .with_byte_budget(&inner.context.byte_budget());
        Ok(match &inner.network {
            Some(network) => context.memory_network(network),
            None => context,
        })
    }
}

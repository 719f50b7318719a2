//! The executor: runs tasks and serves their results.

use anyhow::Context;
use prost::Message;
use rpc_core::{
    EndpointContext, EndpointRef, RpcEndpointRef, RpcEnv, RpcError, ThreadSafeRpcEndpoint,
};

use crate::blocks::BlockServer;
use examples::standalone::{
    CoarseGrainedSchedulerMessage, ExecutorMessage, LaunchExecutor, LaunchTask, RegisterExecutor,
    StatusUpdate,
};

/// Runs the executor in a process that a worker has started.
///
/// `launch` is the encoded `LaunchExecutor` message in hex.
pub(crate) async fn run_launched(launch: &str) -> anyhow::Result<()> {
    let digits: Vec<char> = launch.chars().collect();
    let bytes =
        digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16));
    let launch =
        LaunchExecutor::decode(&*bytes.collect::<Result<Vec<_>, _>>()?).context("--launch")?;
    start(launch).await?.await_termination().await;
    Ok(())
}

pub(crate) async fn start(launch: LaunchExecutor) -> anyhow::Result<RpcEnv> {
    // The environment need not listen, because the driver sends over the connection that the
    // registration opens.
    let env =
        RpcEnv::builder(format!("executor-{}", launch.executor_id)).client_mode().start().await?;
    let driver = env.resolve(&launch.driver.unwrap_or_default())?;
    let executor = Executor {
        id: launch.executor_id,
        driver: RpcEndpointRef::clone(&driver),
        blocks: BlockServer::start().await?,
    };
    let executor = env.setup_endpoint("Executor", executor)?;
    let registration = RegisterExecutor {
        executor_id: launch.executor_id,
        cores: launch.cores,
        executor: Some(EndpointRef::try_from(&executor)?),
    };
    driver.ask(registration).await?;
    Ok(env)
}

struct Executor {
    id: u32,
    driver: RpcEndpointRef<CoarseGrainedSchedulerMessage>,
    blocks: BlockServer,
}

impl ThreadSafeRpcEndpoint for Executor {
    type Message = ExecutorMessage;

    async fn receive(
        &mut self,
        message: ExecutorMessage,
        _cx: &EndpointContext<ExecutorMessage>,
    ) -> Result<(), RpcError> {
        let ExecutorMessage::LaunchTask(LaunchTask { task_id, from, to }) = message;
        // CPU-bound work must not block the runtime's threads.
        let found = tokio::task::spawn_blocking(move || primes(from, to))
            .await
            .map_err(RpcError::application)?;
        let bytes: Vec<u8> = found.into_iter().flat_map(u32::to_le_bytes).collect();
        let result = Some(self.blocks.put(format!("rdd_0_{task_id}"), bytes));
        self.driver.send(StatusUpdate { executor_id: self.id, task_id, result })?;
        Ok(())
    }
}

fn primes(from: u32, to: u32) -> Vec<u32> {
    let is_prime =
        |n: &u32| *n > 1 && (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (from..to).filter(is_prime).collect()
}

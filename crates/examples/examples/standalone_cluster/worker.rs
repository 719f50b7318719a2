//! The worker: starts and stops executors on its machine.

use std::collections::HashMap;
use std::process::{Child, Command};

use anyhow::Context;
use prost::Message;
use rpc_core::{
    EndpointContext, EndpointRef, RpcAddress, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

use crate::executor;
use examples::standalone::{
    ExecutorState, ExecutorStateChanged, KillExecutor, LaunchExecutor, MasterMessage,
    RegisterWorker, WorkerMessage,
};

const CORES: u32 = 2;

/// The place where a worker runs its executors.
#[derive(Clone, Copy)]
pub(crate) enum Launcher {
    /// Executors run in the worker's process, each with an environment of its own.
    ThisProcess,
    /// Each executor runs in a process of its own.
    OwnProcesses,
}

pub(crate) async fn start(
    id: &str,
    masters: &[RpcAddress],
    launcher: Launcher,
) -> anyhow::Result<RpcEnv> {
    let env = RpcEnv::builder(id).bind("127.0.0.1:0").start().await?;
    let master = find_master(&env, masters).await?;
    let worker =
        Worker { id: id.to_owned(), master: master.clone(), launcher, executors: HashMap::new() };
    let worker = env.setup_endpoint("Worker", worker)?;
    // The master sends its messages to the ref in this message.
    let registration = RegisterWorker {
        worker_id: id.to_owned(),
        cores: CORES,
        worker: Some(EndpointRef::try_from(&worker)?),
    };
    let reply = master.ask(registration).await?;
    println!("{id}: registered with {}", reply.master);
    Ok(env)
}

/// Returns a ref to the first of `masters` that can be reached.
pub(crate) async fn find_master(
    env: &RpcEnv,
    masters: &[RpcAddress],
) -> anyhow::Result<RpcEndpointRef<MasterMessage>> {
    for address in masters {
        match env.setup_endpoint_ref(address.clone(), "Master").await {
            Ok(master) => return Ok(master),
            Err(error) => println!("{}: no master at {address}: {error}", env.name()),
        }
    }
    anyhow::bail!("{} found no master", env.name())
}

struct Worker {
    id: String,
    master: RpcEndpointRef<MasterMessage>,
    launcher: Launcher,
    executors: HashMap<(String, u32), RunningExecutor>,
}

enum RunningExecutor {
    ThisProcess(RpcEnv),
    OwnProcess(Child),
}

impl ThreadSafeRpcEndpoint for Worker {
    type Message = WorkerMessage;

    async fn receive(
        &mut self,
        message: WorkerMessage,
        _cx: &EndpointContext<WorkerMessage>,
    ) -> Result<(), RpcError> {
        match message {
            WorkerMessage::LaunchExecutor(launch) => {
                let (app_id, executor_id) = (launch.app_id.clone(), launch.executor_id);
                println!("{}: launches executor {executor_id} for {app_id}", self.id);
                let running = self.launch(launch).await.map_err(RpcError::application)?;
                self.executors.insert((app_id.clone(), executor_id), running);
                self.report_state(app_id, executor_id, ExecutorState::Running)
            }
            WorkerMessage::KillExecutor(KillExecutor { app_id, executor_id }) => {
                let Some(running) = self.executors.remove(&(app_id, executor_id)) else {
                    return Ok(());
                };
                println!("{}: stops executor {executor_id}", self.id);
                running.stop().await
            }
        }
    }

    /// Stops all executors of the worker.
    async fn on_stop(&mut self, _cx: &EndpointContext<WorkerMessage>) -> Result<(), RpcError> {
        for (_, running) in self.executors.drain() {
            running.stop().await?;
        }
        Ok(())
    }
}

impl Worker {
    async fn launch(&self, launch: LaunchExecutor) -> anyhow::Result<RunningExecutor> {
        Ok(match self.launcher {
            Launcher::ThisProcess => RunningExecutor::ThisProcess(executor::start(launch).await?),
            Launcher::OwnProcesses => {
                // The command line contains the encoded message in hex.
                let launch: String =
                    launch.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
                let mut command = Command::new(
                    std::env::current_exe().context("the path of this program is unknown")?,
                );
                RunningExecutor::OwnProcess(
                    command.args(["--role", "executor", "--launch", &launch]).spawn()?,
                )
            }
        })
    }

    /// Reports the state of an executor to the master.
    fn report_state(
        &self,
        app_id: String,
        executor_id: u32,
        state: ExecutorState,
    ) -> Result<(), RpcError> {
        self.master.send(ExecutorStateChanged { app_id, executor_id, state: state.into() })?;
        Ok(())
    }
}

impl RunningExecutor {
    async fn stop(self) -> Result<(), RpcError> {
        match self {
            Self::ThisProcess(env) => drop(env.shutdown().await),
            Self::OwnProcess(mut child) => {
                child.kill().and_then(|()| child.wait()).map_err(RpcError::application)?;
            }
        }
        Ok(())
    }
}

//! Starts and stops executors on its machine.

use std::collections::HashMap;
use std::process::{Child, Command};

use anyhow::Context;
use prost::Message;
use rpc_core::{
    EndpointContext, EndpointRef, RpcAddress, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

use crate::executor;
use crate::standalone::{
    ExecutorState, ExecutorStateChanged, KillExecutor, LaunchExecutor, MasterMessage,
    RegisterWorker, WorkerMessage,
};

const CORES: u32 = 2;

/// Where executors run.
#[derive(Clone, Copy)]
pub(crate) enum Launcher {
    /// In this process, each in an environment of its own.
    Here,
    Processes,
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
    // The master answers by sending to the ref that travels in this message.
    let registered = RegisterWorker {
        worker_id: id.to_owned(),
        cores: CORES,
        worker: Some(EndpointRef::try_from(&worker)?),
    };
    let answer = master.ask(registered).await?;
    println!("{id}: registered with {}", answer.master);
    Ok(env)
}

/// The first of `masters` that is there.
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
    executors: HashMap<(String, u32), Running>,
}

enum Running {
    Here(RpcEnv),
    Process(Child),
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
                self.tell(app_id, executor_id, ExecutorState::Running)
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

    /// A worker takes its executors with it.
    async fn on_stop(&mut self, _cx: &EndpointContext<WorkerMessage>) -> Result<(), RpcError> {
        for (_, running) in self.executors.drain() {
            running.stop().await?;
        }
        Ok(())
    }
}

impl Worker {
    async fn launch(&self, launch: LaunchExecutor) -> anyhow::Result<Running> {
        Ok(match self.launcher {
            Launcher::Here => Running::Here(executor::start(launch).await?),
            Launcher::Processes => {
                // A message is as good a command line as any.
                let launch: String =
                    launch.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
                let mut command =
                    Command::new(std::env::current_exe().context("which program is this?")?);
                Running::Process(command.args(["--role", "executor", "--launch", &launch]).spawn()?)
            }
        })
    }

    fn tell(&self, app_id: String, executor_id: u32, state: ExecutorState) -> Result<(), RpcError> {
        self.master.send(ExecutorStateChanged { app_id, executor_id, state: state.into() })?;
        Ok(())
    }
}

impl Running {
    async fn stop(self) -> Result<(), RpcError> {
        match self {
            Self::Here(env) => drop(env.shutdown().await),
            Self::Process(mut child) => {
                child.kill().and_then(|()| child.wait()).map_err(RpcError::application)?;
            }
        }
        Ok(())
    }
}

//! Executors that tell a driver again and again that they are alive: `cargo run --example
//! heartbeat`.
//!
//! The driver starts three executors as processes of their own. One is killed: the driver notices
//! at once, as the connection ends. One falls silent with its connection open: the driver notices
//! by the beats that are missing.

use std::collections::HashMap;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Context;
use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::heartbeat::{ExpireDeadHosts, Heartbeat, HeartbeatReceiverMessage, HeartbeatResponse};

mod heartbeat {
    rpc_core::include_proto!("heartbeat");
}

const INTERVAL: Duration = Duration::from_millis(200);
const SILENCE: Duration = Duration::from_secs(1);

/// The driver's endpoint.
struct HeartbeatReceiver {
    executors: HashMap<String, Executor>,
    /// Who has been lost, and how that was noticed.
    lost: mpsc::UnboundedSender<(String, &'static str)>,
}

struct Executor {
    address: RpcAddress,
    last_seen: Instant,
}

impl ThreadSafeRpcEndpoint for HeartbeatReceiver {
    type Message = HeartbeatReceiverMessage;

    async fn on_start(
        &mut self,
        cx: &EndpointContext<HeartbeatReceiverMessage>,
    ) -> Result<(), RpcError> {
        let Some(itself) = cx.self_ref().cloned() else { return Ok(()) };
        // A clock that sends is all it takes: the endpoint's state needs no lock.
        tokio::spawn(async move {
            while itself.send(ExpireDeadHosts {}).is_ok() {
                tokio::time::sleep(SILENCE / 4).await;
            }
        });
        Ok(())
    }

    async fn receive(
        &mut self,
        message: HeartbeatReceiverMessage,
        _cx: &EndpointContext<HeartbeatReceiverMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HeartbeatReceiverMessage::Heartbeat(beat, context) => {
                let address = context.sender_address().cloned();
                let address =
                    address.ok_or_else(|| RpcError::application("a beat from nowhere"))?;
                let seen = Executor { address, last_seen: Instant::now() };
                if self.executors.insert(beat.executor_id.clone(), seen).is_none() {
                    println!("driver: executor {} is alive", beat.executor_id);
                }
                context.reply(HeartbeatResponse { reregister: false })
            }
            HeartbeatReceiverMessage::ExpireDeadHosts(_) => {
                let silent = |executor: &Executor| executor.last_seen.elapsed() > SILENCE;
                self.remove(silent, "no heartbeat for too long")
            }
        }
    }

    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<HeartbeatReceiverMessage>,
    ) -> Result<(), RpcError> {
        self.remove(|executor| executor.address == remote, "its connection ended")
    }
}

impl HeartbeatReceiver {
    fn remove(
        &mut self,
        dead: impl Fn(&Executor) -> bool,
        why: &'static str,
    ) -> Result<(), RpcError> {
        let dead =
            self.executors.iter().filter(|(_, executor)| dead(executor)).map(|(id, _)| id.clone());
        for id in dead.collect::<Vec<_>>() {
            self.executors.remove(&id);
            println!("driver: executor {id} is lost: {why}");
            self.lost.send((id, why)).map_err(RpcError::application)?;
        }
        Ok(())
    }
}

/// Beats until it is killed; the one called `silent` stops after a while and hangs.
async fn executor(id: &str, driver: RpcAddress) -> anyhow::Result<()> {
    let env = RpcEnv::builder(format!("executor-{id}")).client_mode().start().await?;
    let receiver =
        env.setup_endpoint_ref::<HeartbeatReceiverMessage>(driver, "HeartbeatReceiver").await?;
    for beat in 0.. {
        if id == "silent" && beat == 5 {
            std::future::pending::<()>().await;
        }
        // A beat that is not answered in time is missed, and no reason to give up.
        let heartbeat = Heartbeat { executor_id: id.to_owned(), running_tasks: 1 };
        match receiver.ask_with_timeout(heartbeat, INTERVAL).await {
            Ok(_) => {}
            Err(error) if error.is_timeout() => println!("executor {id}: {error}"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

fn start(id: &str, driver: &RpcAddress) -> anyhow::Result<Child> {
    Ok(Command::new(std::env::current_exe()?)
        .args(["--executor", id, &driver.to_string()])
        .spawn()?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, id, driver] = &arguments[..] {
        anyhow::ensure!(flag == "--executor", "usage: heartbeat [--executor ID HOST:PORT]");
        return executor(id, driver.parse()?).await;
    }

    let env = RpcEnv::builder("driver").bind("127.0.0.1:0").start().await?;
    let (lost, mut losses) = mpsc::unbounded_channel();
    env.setup_endpoint("HeartbeatReceiver", HeartbeatReceiver { executors: HashMap::new(), lost })?;
    let address = env.address().context("a driver listens")?;

    let (mut steady, mut killed, mut silent) =
        (start("steady", address)?, start("killed", address)?, start("silent", address)?);
    tokio::time::sleep(3 * INTERVAL).await;
    println!("driver: killing one of them");
    killed.kill()?;

    for _ in 0..2 {
        let (id, why) = losses.recv().await.context("the receiver is gone")?;
        println!("driver: starts the tasks of {id} elsewhere, as {why}");
    }
    for child in [&mut steady, &mut killed, &mut silent] {
        // It may have ended already.
        let _ = child.kill();
        child.wait()?;
    }
    env.shutdown().await;
    Ok(())
}

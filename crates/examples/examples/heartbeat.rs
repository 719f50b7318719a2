//! A driver detects dead executors by closed connections and by missing heartbeats.
//!
//! Run it with `cargo run --example heartbeat`. The driver starts three executors as processes of
//! their own. It kills one of them and detects that immediately, because the connection closes. The
//! second stops sending heartbeats with its connection open, which the driver detects by a timeout.

use std::collections::HashMap;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Context;
use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};
use tokio::sync::mpsc;
use tokio::time::Instant;

use examples::heartbeat::{
    ExpireDeadHosts, Heartbeat, HeartbeatReceiverMessage, HeartbeatResponse,
};

const INTERVAL: Duration = Duration::from_millis(200);
/// The driver removes an executor whose last heartbeat is older.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(1);

/// The driver's endpoint.
struct HeartbeatReceiver {
    executors: HashMap<String, Executor>,
    /// Receives the id of each lost executor, and the reason.
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
        let self_ref = cx.self_ref().clone();
        // The timer sends messages, so the state of the endpoint needs no lock.
        tokio::spawn(async move {
            while self_ref.send(ExpireDeadHosts {}).is_ok() {
                tokio::time::sleep(HEARTBEAT_TIMEOUT / 4).await;
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
                let address = address
                    .ok_or_else(|| RpcError::application("the heartbeat has no sender address"))?;
                let executor = Executor { address, last_seen: Instant::now() };
                if self.executors.insert(beat.executor_id.clone(), executor).is_none() {
                    println!("driver: executor {} is alive", beat.executor_id);
                }
                context.reply(HeartbeatResponse { reregister: false })
            }
            HeartbeatReceiverMessage::ExpireDeadHosts(_) => {
                let is_expired =
                    |executor: &Executor| executor.last_seen.elapsed() > HEARTBEAT_TIMEOUT;
                self.remove(is_expired, "no heartbeat for too long")
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
    /// Removes the executors that `is_dead` selects.
    fn remove(
        &mut self,
        is_dead: impl Fn(&Executor) -> bool,
        reason: &'static str,
    ) -> Result<(), RpcError> {
        let dead = self.executors.iter().filter(|(_, executor)| is_dead(executor));
        for id in dead.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.executors.remove(&id);
            println!("driver: executor {id} is lost: {reason}");
            self.lost.send((id, reason)).map_err(RpcError::application)?;
        }
        Ok(())
    }
}

/// Sends heartbeats until the process is killed. The executor `silent` stops after 5 of them.
async fn executor(id: &str, driver: RpcAddress) -> anyhow::Result<()> {
    let env = RpcEnv::builder(format!("executor-{id}")).client_mode().start().await?;
    let receiver =
        env.setup_endpoint_ref::<HeartbeatReceiverMessage>(driver, "HeartbeatReceiver").await?;
    for beat in 0.. {
        if id == "silent" && beat == 5 {
            std::future::pending::<()>().await;
        }
        // A heartbeat that times out is not fatal, because the next one follows.
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
    let address = env.address().context("the driver has no address")?;

    let (mut steady, mut killed, mut silent) =
        (start("steady", address)?, start("killed", address)?, start("silent", address)?);
    tokio::time::sleep(3 * INTERVAL).await;
    println!("driver: kills the executor `killed`");
    killed.kill()?;

    for _ in 0..2 {
        let (id, reason) = losses.recv().await.context("the endpoint has stopped")?;
        println!("driver: moves the tasks of {id} to other executors ({reason})");
    }
    for child in [&mut steady, &mut killed, &mut silent] {
        // This fails if the process has exited already.
        let _ = child.kill();
        child.wait()?;
    }
    env.shutdown().await;
    Ok(())
}

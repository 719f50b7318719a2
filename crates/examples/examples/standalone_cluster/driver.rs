//! The driver: registers an application, assigns tasks to executors, and collects the results.

use std::collections::{HashMap, VecDeque};

use anyhow::Context;
use rpc_core::{
    EndpointContext, EndpointRef, RpcAddress, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

use crate::blocks::BlockFetcher;
use crate::worker::find_master;
use examples::standalone::{
    AppClientMessage, Block, CoarseGrainedSchedulerMessage, ExecutorMessage, LaunchTask,
    MasterMessage, RegisterApplication, RegisterExecutor, RegisteredExecutor, RequestExecutors,
    ReviveOffers, StatusUpdate, StopAppClient, UnregisterApplication,
};

/// The application counts the primes below this number.
pub(crate) const LIMIT: u32 = 1_000_000;
const TASKS: u32 = 20;

/// Runs the application, and returns the number of primes.
///
/// Calls `on_result` with the number of results after each of them.
pub(crate) async fn run(
    masters: &[RpcAddress],
    on_result: impl Fn(usize),
) -> anyhow::Result<usize> {
    // Executors connect to the scheduler, so its environment listens. The environment of the
    // master's client need not listen.
    let scheduler_env = RpcEnv::builder("driver").bind("127.0.0.1:0").start().await?;
    let (results, mut blocks) = mpsc::unbounded_channel();
    let scheduler =
        scheduler_env.setup_endpoint("CoarseGrainedScheduler", Scheduler::new(results))?;

    let env = RpcEnv::builder("driver-client").client_mode().start().await?;
    let master = find_master(&env, masters).await?;
    let (removed, mut removal) = mpsc::unbounded_channel();
    let client =
        AppClient { master, driver: EndpointRef::try_from(&scheduler)?, app_id: None, removed };
    let client = env.setup_endpoint("AppClient", client)?;
    client.ask(RequestExecutors { app_id: String::new(), total: 4 }).await?;

    let fetcher = BlockFetcher::new();
    let mut by_task = HashMap::new();
    while by_task.len() < TASKS as usize {
        let (task_id, block) = blocks.recv().await.context("the scheduler has stopped")?;
        match fetcher.fetch(&block).await {
            Ok(bytes) => {
                by_task.insert(task_id, bytes.len() / size_of::<u32>());
                on_result(by_task.len());
            }
            Err(error) => {
                println!("driver:   the result of task {task_id} is lost: {error}");
                scheduler.send(StatusUpdate { executor_id: 0, task_id, result: None })?;
            }
        }
    }
    client.ask(StopAppClient {}).await?;
    removal.recv().await.context("the client has stopped")?;
    env.shutdown().await;
    scheduler_env.shutdown().await;
    Ok(by_task.into_values().sum())
}

/// Assigns tasks to executors.
struct Scheduler {
    queued: VecDeque<LaunchTask>,
    executors: HashMap<u32, ExecutorData>,
    results: mpsc::UnboundedSender<(u32, Block)>,
}

struct ExecutorData {
    endpoint: RpcEndpointRef<ExecutorMessage>,
    /// The remote address of its connection.
    address: Option<RpcAddress>,
    cores: u32,
    running: HashMap<u32, LaunchTask>,
}

impl Scheduler {
    fn new(results: mpsc::UnboundedSender<(u32, Block)>) -> Self {
        Self { queued: (0..TASKS).map(task).collect(), executors: HashMap::new(), results }
    }

    /// Assigns queued tasks to executors with free cores.
    fn assign_tasks(&mut self) -> Result<(), RpcError> {
        for (executor_id, executor) in &mut self.executors {
            while (executor.running.len() as u32) < executor.cores {
                let Some(task) = self.queued.pop_front() else { return Ok(()) };
                println!("driver:   sends task {} to executor {executor_id}", task.task_id);
                executor.endpoint.send(task)?;
                executor.running.insert(task.task_id, task);
            }
        }
        Ok(())
    }
}

fn task(task_id: u32) -> LaunchTask {
    let size = LIMIT / TASKS;
    LaunchTask { task_id, from: task_id * size, to: (task_id + 1) * size }
}

/// Makes the scheduler assign queued tasks after the current message.
fn revive_offers(cx: &EndpointContext<CoarseGrainedSchedulerMessage>) {
    // This fails only if the scheduler is being stopped.
    let _ = cx.self_ref().send(ReviveOffers {});
}

impl ThreadSafeRpcEndpoint for Scheduler {
    type Message = CoarseGrainedSchedulerMessage;

    async fn receive(
        &mut self,
        message: CoarseGrainedSchedulerMessage,
        cx: &EndpointContext<CoarseGrainedSchedulerMessage>,
    ) -> Result<(), RpcError> {
        match message {
            CoarseGrainedSchedulerMessage::RegisterExecutor(registration, context) => {
                let RegisterExecutor { executor_id, cores, executor } = registration;
                let endpoint = cx.env().resolve(&executor.unwrap_or_default())?;
                let address = context.sender_address().cloned();
                println!("driver:   executor {executor_id} is ready");
                let running = HashMap::new();
                self.executors
                    .insert(executor_id, ExecutorData { endpoint, address, cores, running });
                context.reply(RegisteredExecutor {})?;
                revive_offers(cx);
            }
            CoarseGrainedSchedulerMessage::StatusUpdate(update) => {
                if let Some(executor) = self.executors.get_mut(&update.executor_id) {
                    executor.running.remove(&update.task_id);
                }
                match update.result {
                    Some(block) => {
                        self.results
                            .send((update.task_id, block))
                            .map_err(RpcError::application)?;
                    }
                    None => self.queued.push_back(task(update.task_id)),
                }
                revive_offers(cx);
            }
            CoarseGrainedSchedulerMessage::ReviveOffers(_) => self.assign_tasks()?,
        }
        Ok(())
    }

    /// Removes the executor of a closed connection, and queues its tasks again.
    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        cx: &EndpointContext<CoarseGrainedSchedulerMessage>,
    ) -> Result<(), RpcError> {
        let lost =
            self.executors.iter().find(|(_, executor)| executor.address.as_ref() == Some(&remote));
        let Some(executor_id) = lost.map(|(id, _)| *id) else { return Ok(()) };
        if let Some(executor) = self.executors.remove(&executor_id) {
            println!(
                "driver:   executor {executor_id} is lost with {} tasks",
                executor.running.len()
            );
            self.queued.extend(executor.running.into_values());
        }
        revive_offers(cx);
        Ok(())
    }
}

/// The driver's client of the master.
struct AppClient {
    master: RpcEndpointRef<MasterMessage>,
    /// The endpoint at which executors register.
    driver: EndpointRef,
    /// The id of the application; `None` before its registration.
    app_id: Option<String>,
    removed: mpsc::UnboundedSender<()>,
}

impl AppClient {
    fn app_id(&self) -> Result<String, RpcError> {
        self.app_id
            .clone()
            .ok_or_else(|| RpcError::application("the application is not registered"))
    }
}

impl ThreadSafeRpcEndpoint for AppClient {
    type Message = AppClientMessage;

    async fn on_start(&mut self, cx: &EndpointContext<AppClientMessage>) -> Result<(), RpcError> {
        let application = RegisterApplication {
            name: "count primes".to_owned(),
            executors: 2,
            app_client: Some(EndpointRef::try_from(cx.self_ref())?),
            driver: Some(self.driver.clone()),
        };
        let registered = self.master.ask(application).await?;
        println!("driver:   registered as {}", registered.app_id);
        self.app_id = Some(registered.app_id);
        Ok(())
    }

    async fn receive(
        &mut self,
        message: AppClientMessage,
        _cx: &EndpointContext<AppClientMessage>,
    ) -> Result<(), RpcError> {
        match message {
            AppClientMessage::RequestExecutors(request, context) => {
                let request = RequestExecutors { app_id: self.app_id()?, ..request };
                self.master.ask(request).await?;
                context.reply(())
            }
            AppClientMessage::StopAppClient(_, context) => {
                self.master.send(UnregisterApplication { app_id: self.app_id()? })?;
                context.reply(())
            }
            AppClientMessage::ExecutorAdded(added) => {
                println!(
                    "driver:   executor {} is added on {}",
                    added.executor_id, added.worker_id
                );
                Ok(())
            }
            AppClientMessage::ExecutorUpdated(updated) => {
                println!("driver:   executor {} is {:?}", updated.executor_id, updated.state());
                Ok(())
            }
            AppClientMessage::WorkerRemoved(removed) => {
                println!("driver:   {} is removed", removed.worker_id);
                Ok(())
            }
            AppClientMessage::ApplicationRemoved(removed) => {
                println!("driver:   the application is removed: {}", removed.reason);
                self.removed.send(()).map_err(RpcError::application)
            }
        }
    }
}

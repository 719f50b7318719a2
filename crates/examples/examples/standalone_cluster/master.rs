//! The master: assigns the cores of workers to applications.

use std::collections::HashMap;

use rpc_core::{
    EndpointContext, EndpointRef, RpcAddress, RpcEndpointRef, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

use examples::standalone::{
    AppClientMessage, ApplicationRemoved, ExecutorAdded, ExecutorState, ExecutorStateChanged,
    ExecutorUpdated, KillExecutor, LaunchExecutor, MasterMessage, RegisterApplication,
    RegisterWorker, RegisteredApplication, RegisteredWorker, WorkerMessage, WorkerRemoved,
};

pub(crate) async fn start(bind: &str) -> Result<RpcEnv, RpcError> {
    let env = RpcEnv::builder("master").bind(bind).start().await?;
    let master = env.setup_endpoint("Master", Master::default())?;
    println!("master:   serves {master}");
    Ok(env)
}

#[derive(Default)]
struct Master {
    workers: HashMap<String, Worker>,
    applications: HashMap<String, Application>,
    /// The number of launched executors, which is the id of the last one.
    launched: u32,
}

struct Worker {
    endpoint: RpcEndpointRef<WorkerMessage>,
    free_cores: u32,
}

struct Application {
    client: RpcEndpointRef<AppClientMessage>,
    driver: EndpointRef,
    requested_executors: u32,
    /// The id of each executor, with the worker that runs it.
    executors: HashMap<u32, String>,
}

impl ThreadSafeRpcEndpoint for Master {
    type Message = MasterMessage;

    async fn receive(
        &mut self,
        message: MasterMessage,
        cx: &EndpointContext<MasterMessage>,
    ) -> Result<(), RpcError> {
        match message {
            MasterMessage::RegisterWorker(worker, context) => {
                self.register_worker(worker, cx)?;
                context.reply(RegisteredWorker { master: cx.env().name().to_owned() })?;
            }
            MasterMessage::RegisterApplication(application, context) => {
                let app_id = self.register_application(application, cx)?;
                context.reply(RegisteredApplication { app_id })?;
            }
            MasterMessage::RequestExecutors(request, context) => {
                let application = self.applications.get_mut(&request.app_id);
                let application = application
                    .ok_or_else(|| RpcError::application("the application is unknown"))?;
                println!("master:   {} requests {} executors", request.app_id, request.total);
                application.requested_executors = request.total;
                context.reply(())?;
            }
            MasterMessage::ExecutorStateChanged(changed) => self.executor_changed(&changed)?,
            MasterMessage::UnregisterApplication(done) => self.remove_application(&done.app_id)?,
        }
        self.schedule()
    }

    /// Removes the worker of a closed connection.
    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<MasterMessage>,
    ) -> Result<(), RpcError> {
        let lost = self
            .workers
            .iter()
            .find(|(_, worker)| worker.endpoint.address().address() == Some(&remote));
        let Some(worker_id) = lost.map(|(id, _)| id.clone()) else { return Ok(()) };
        println!("master:   lost {worker_id}");
        self.workers.remove(&worker_id);
        for application in self.applications.values_mut() {
            application.executors.retain(|_, worker| *worker != worker_id);
            application.client.send(WorkerRemoved { worker_id: worker_id.clone() })?;
        }
        self.schedule()
    }
}

impl Master {
    fn register_worker(
        &mut self,
        worker: RegisterWorker,
        cx: &EndpointContext<MasterMessage>,
    ) -> Result<(), RpcError> {
        let endpoint = cx.env().resolve(&worker.worker.unwrap_or_default())?;
        println!("master:   {} offers {} cores at {endpoint}", worker.worker_id, worker.cores);
        self.workers.insert(worker.worker_id, Worker { endpoint, free_cores: worker.cores });
        Ok(())
    }

    fn register_application(
        &mut self,
        application: RegisterApplication,
        cx: &EndpointContext<MasterMessage>,
    ) -> Result<String, RpcError> {
        let app_id = format!("app-{}", self.applications.len() + 1);
        println!("master:   {app_id} is {}", application.name);
        let registered = Application {
            // The client's environment does not listen. Messages to it are sent over the
            // connection that it has opened.
            client: cx.env().resolve(&application.app_client.unwrap_or_default())?,
            driver: application.driver.unwrap_or_default(),
            requested_executors: application.executors,
            executors: HashMap::new(),
        };
        self.applications.insert(app_id.clone(), registered);
        Ok(app_id)
    }

    /// Launches the requested executors while workers have free cores.
    fn schedule(&mut self) -> Result<(), RpcError> {
        for (app_id, application) in &mut self.applications {
            while (application.executors.len() as u32) < application.requested_executors {
                // Choosing the most free cores distributes the executors over the workers.
                let worker = self.workers.iter_mut().max_by_key(|(_, worker)| worker.free_cores);
                let Some((worker_id, worker)) = worker.filter(|(_, worker)| worker.free_cores > 0)
                else {
                    break;
                };
                self.launched += 1;
                let executor_id = self.launched;
                worker.free_cores -= 1;
                application.executors.insert(executor_id, worker_id.clone());
                worker.endpoint.send(LaunchExecutor {
                    app_id: app_id.clone(),
                    executor_id,
                    cores: 1,
                    driver: Some(application.driver.clone()),
                })?;
                application
                    .client
                    .send(ExecutorAdded { executor_id, worker_id: worker_id.clone() })?;
            }
        }
        Ok(())
    }

    fn executor_changed(&mut self, changed: &ExecutorStateChanged) -> Result<(), RpcError> {
        let Some(application) = self.applications.get_mut(&changed.app_id) else { return Ok(()) };
        if changed.state() == ExecutorState::Exited {
            let worker = application.executors.remove(&changed.executor_id);
            if let Some(worker) = worker.and_then(|id| self.workers.get_mut(&id)) {
                worker.free_cores += 1;
            }
        }
        application
            .client
            .send(ExecutorUpdated { executor_id: changed.executor_id, state: changed.state })?;
        Ok(())
    }

    fn remove_application(&mut self, app_id: &str) -> Result<(), RpcError> {
        let Some(application) = self.applications.remove(app_id) else { return Ok(()) };
        println!("master:   {app_id} has finished");
        for (executor_id, worker) in application.executors {
            if let Some(worker) = self.workers.get_mut(&worker) {
                worker.free_cores += 1;
                worker.endpoint.send(KillExecutor { app_id: app_id.to_owned(), executor_id })?;
            }
        }
        application.client.send(ApplicationRemoved { reason: "finished".to_owned() })?;
        Ok(())
    }
}

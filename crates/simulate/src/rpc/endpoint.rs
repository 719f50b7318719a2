//! The endpoint of the plays: does what each order says, and reports it to the auditor.

use std::sync::Arc;
use std::time::Duration;

use rpc_core::{
    EndpointContext, EndpointOptions, RpcCallContext, RpcEndpoint, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};

use super::auditor::{Auditor, LifeToken};
use super::messages::order::Behaviour;
use super::messages::{Done, Order, WorkMessage};
use super::steps::ENDPOINTS;
use crate::INTENDED_FAILURE;

struct Worker {
    auditor: Arc<Auditor>,
    _token: LifeToken,
}

impl Worker {
    async fn receive(&self, message: WorkMessage) -> Result<(), RpcError> {
        match message {
            WorkMessage::Notify(order) => {
                self.auditor.on_handled(&order);
                tokio::time::sleep(Duration::from_millis(order.millis.into())).await;
                Ok(())
            }
            WorkMessage::Do(order, context) => {
                self.auditor.on_handled(&order);
                self.perform(&order, context).await
            }
        }
    }

    async fn perform(&self, order: &Order, context: RpcCallContext<Done>) -> Result<(), RpcError> {
        let done = Done { id: order.id };
        let wait = Duration::from_millis(order.millis.into());
        match order.behaviour() {
            Behaviour::Reply => context.reply(done),
            Behaviour::Wait => {
                tokio::time::sleep(wait).await;
                context.reply(done)
            }
            Behaviour::Spawn => {
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    drop(context.reply(done));
                });
                Ok(())
            }
            Behaviour::Keep => {
                self.auditor.keep(order.id, context);
                Ok(())
            }
            Behaviour::Drop => Ok(()),
            Behaviour::Fail => Err(RpcError::application(INTENDED_FAILURE)),
            Behaviour::Panic => std::panic::panic_any(INTENDED_FAILURE),
        }
    }
}

struct Serial(Worker);
struct Concurrent(Worker);

impl ThreadSafeRpcEndpoint for Serial {
    type Message = WorkMessage;

    async fn receive(
        &mut self,
        message: WorkMessage,
        _: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        self.0.receive(message).await
    }

    async fn on_error(
        &mut self,
        _: RpcError,
        _: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
}

impl RpcEndpoint for Concurrent {
    type Message = WorkMessage;

    async fn receive(
        &self,
        message: WorkMessage,
        _: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        self.0.receive(message).await
    }

    async fn on_error(
        &self,
        _: RpcError,
        _: &EndpointContext<WorkMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }
}

/// Registers the endpoint with this index, if the environment has none of its name.
pub(super) fn set_up(env: &RpcEnv, endpoint: usize, auditor: &Arc<Auditor>) {
    let worker = Worker { auditor: Arc::clone(auditor), _token: auditor.endpoint_token() };
    let (name, options) = (ENDPOINTS[endpoint], EndpointOptions::new());
    // Fails if the environment has shut down or the name is in use, which steps may cause.
    drop(match name {
        "serial" => env.setup_endpoint(name, Serial(worker)),
        "concurrent" => env.setup_endpoint(name, Concurrent(worker)),
        "small" => env.setup_endpoint_with(name, Serial(worker), options.max_messages(4)),
        _ => env.setup_endpoint_with(name, Concurrent(worker), options.isolated(2)),
    });
}

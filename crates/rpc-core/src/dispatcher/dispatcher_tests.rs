use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::address::RpcAddress;
use crate::ask::{AskResources, EndpointInfo};
use crate::conf::RpcConf;
use crate::endpoint::ThreadSafeRpcEndpoint;
use crate::trace::Tracer;

struct NoMessage;
impl RpcMessage for NoMessage {}

/// Sends a text for every connection event that it receives.
struct EventRecorder(mpsc::UnboundedSender<String>);

impl EventRecorder {
    fn record(&self, event: String) -> Result<(), RpcError> {
        self.0.send(event).map_err(RpcError::application)
    }
}

impl ThreadSafeRpcEndpoint for EventRecorder {
    type Message = NoMessage;

    async fn receive(
        &mut self,
        _: NoMessage,
        _: &EndpointContext<NoMessage>,
    ) -> Result<(), RpcError> {
        Ok(())
    }

    async fn on_connected(
        &mut self,
        from: RpcAddress,
        _: &EndpointContext<NoMessage>,
    ) -> Result<(), RpcError> {
        self.record(format!("connected {from}"))
    }

    async fn on_disconnected(
        &mut self,
        from: RpcAddress,
        _: &EndpointContext<NoMessage>,
    ) -> Result<(), RpcError> {
        self.record(format!("disconnected {from}"))
    }

    async fn on_network_error(
        &mut self,
        error: RpcError,
        from: RpcAddress,
        _: &EndpointContext<NoMessage>,
    ) -> Result<(), RpcError> {
        self.record(format!("{error} {from}"))
    }
}

/// Posts `event` to two endpoints, stops them, and posts it again. Returns what each received.
async fn received_events(event: ConnectionEvent) -> [Vec<String>; 2] {
    let runtime = Handle::current();
    let asks = AskResources::new(RpcConf::new().ask().unwrap(), Tracer::default(), runtime.clone());
    let budget =
        Arc::new(RpcConf::new().inbox_budget(&network_common::ByteBudget::new(u64::MAX)).unwrap());
    let dispatcher = Dispatcher::new(runtime, budget);
    let receivers = ["a", "b"].map(|name| {
        let (sender, receiver) = mpsc::unbounded_channel();
        let address = RpcEndpointAddress::new(None, name).unwrap();
        let info = EndpointInfo::new(address, Arc::clone(&asks), 1);
        let inbox = Inbox::new(info, Arc::new(RpcConf::new().inbox().unwrap()));
        let (endpoint, options) = (EventRecorder(sender), EndpointOptions::new());
        dispatcher.register(endpoint, inbox, &options, Arc::new(())).unwrap();
        receiver
    });
    dispatcher.post_to_all(&event);
    let stopping = dispatcher.begin_stop();
    dispatcher.finish_stop(stopping, Duration::from_secs(10)).await;
    dispatcher.post_to_all(&event);
    receivers.map(|mut receiver| std::iter::from_fn(|| receiver.try_recv().ok()).collect())
}

#[tokio::test]
async fn inb_04_each_endpoint_receives_connected_once() {
    let received = received_events(ConnectionEvent::Connected(RpcAddress::new("peer", 1))).await;
    assert_eq!(received, [["connected peer:1"], ["connected peer:1"]]);
}

#[tokio::test]
async fn inb_05_each_endpoint_receives_disconnected_once() {
    let received = received_events(ConnectionEvent::Disconnected(RpcAddress::new("peer", 1))).await;
    assert_eq!(received, [["disconnected peer:1"], ["disconnected peer:1"]]);
}

#[tokio::test]
async fn inb_06_each_endpoint_receives_network_error_once() {
    let error = RpcError::new(ErrorKind::Network, "reset");
    let event = ConnectionEvent::NetworkError(error, RpcAddress::new("peer", 1));
    assert_eq!(received_events(event).await, [["reset peer:1"], ["reset peer:1"]]);
}

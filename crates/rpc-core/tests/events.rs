//! Connection events of endpoints: rows `rpc_env_21` to `rpc_env_23`, `rpc_env_35`, `nrh_01`
//! and `nrh_02`. The peers are other environments and bare transport clients.

mod common;

use common::{Hello, HelloMessage, address, client, hi, next, server, soon};
use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use rpc_core::{
    EndpointContext, EndpointOptions, ErrorKind, RpcAddress, RpcEnv, RpcError,
    ThreadSafeRpcEndpoint,
};
use tokio::sync::mpsc;

/// An endpoint that sends connection events and its stop to the test.
struct Watch(mpsc::UnboundedSender<(&'static str, RpcAddress)>);

impl ThreadSafeRpcEndpoint for Watch {
    type Message = HelloMessage;
    async fn receive(
        &mut self,
        message: HelloMessage,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        drop(message);
        Ok(())
    }
    async fn on_connected(
        &mut self,
        remote: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.0.send(("connected", remote));
        Ok(())
    }
    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.0.send(("disconnected", remote));
        Ok(())
    }
    async fn on_network_error(
        &mut self,
        _: RpcError,
        remote: RpcAddress,
        _: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        let _ = self.0.send(("network error", remote));
        Ok(())
    }
    async fn on_stop(&mut self, _: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        let _ = self.0.send(("stop", RpcAddress::new("-", 0)));
        Ok(())
    }
}

fn watch(env: &RpcEnv) -> mpsc::UnboundedReceiver<(&'static str, RpcAddress)> {
    let (tx, events) = mpsc::unbounded_channel();
    env.setup_endpoint("watch", Watch(tx)).expect("the name is free");
    events
}

/// Waits for one event, and discards others.
async fn until(
    events: &mut mpsc::UnboundedReceiver<(&'static str, RpcAddress)>,
    name: &str,
    matches: impl Fn(&RpcAddress) -> bool,
) {
    loop {
        let (event, address) = next(events).await;
        if event == name && matches(&address) {
            return;
        }
    }
}

#[tokio::test]
async fn rpc_env_21_server_receives_events_of_another_server() {
    let (first, second) = (server().await, server().await);
    let (mut events, mut others) = (watch(&first), watch(&second));
    let there = address(&second);
    soon(first.setup_endpoint_ref::<HelloMessage>(there.clone(), "watch")).await.unwrap();
    until(&mut events, "connected", |address| *address == there).await;
    // The advertised address of the first server arrives with its first message.
    let first_address = address(&first);
    until(&mut others, "connected", |address| *address == first_address).await;
    soon(second.shutdown()).await;
    until(&mut events, "disconnected", |address| *address == there).await;
}

#[tokio::test]
async fn rpc_env_22_server_receives_events_of_client() {
    let (server, client) = (server().await, client().await);
    let mut events = watch(&server);
    soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "watch")).await.unwrap();
    let (event, socket) = next(&mut events).await;
    assert_eq!((event, socket.host()), ("connected", "127.0.0.1"));
    soon(client.shutdown()).await;
    until(&mut events, "disconnected", |address| *address == socket).await;
}

#[tokio::test]
async fn rpc_env_23_client_receives_events_of_server() {
    let (server, client) = (server().await, client().await);
    let mut events = watch(&client);
    server.setup_endpoint("hello", Hello).unwrap();
    let there = address(&server);
    soon(client.setup_endpoint_ref::<HelloMessage>(there.clone(), "hello")).await.unwrap();
    until(&mut events, "connected", |address| *address == there).await;
    soon(server.shutdown()).await;
    until(&mut events, "disconnected", |address| *address == there).await;
}

#[tokio::test]
async fn rpc_env_35_shutdown_does_not_fire_disconnected() {
    let (server, client) = (server().await, client().await);
    let mut events = watch(&client);
    server.setup_endpoint("hello", Hello).unwrap();
    soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "hello")).await.unwrap();
    soon(client.shutdown()).await;
    let mut all = Vec::new();
    while let Some((event, _)) = soon(events.recv()).await {
        all.push(event);
    }
    assert_eq!(all, ["connected", "stop"]);
}

/// Connects a transport client that sends nothing, so that only the connection causes events.
async fn silent_client(server: &RpcEnv) -> TransportClient {
    let context = TransportContext::new(TransportConf::new("rpc"), NoOpRpcHandler::new());
    let there = address(server);
    let factory = context.create_client_factory();
    soon(factory.create_unmanaged_client((there.host(), there.port())))
        .await
        .expect("the server listens")
}

#[tokio::test]
async fn nrh_01_connection_is_reported_once() {
    let server = server().await;
    let mut events = watch(&server);
    let client = silent_client(&server).await;
    assert_eq!(next(&mut events).await, ("connected", RpcAddress::from(client.local_addr())));
    // The connection ends with this environment, so its end causes no event.
    soon(server.shutdown()).await;
    assert_eq!(next(&mut events).await.0, "stop");
    assert_eq!(soon(events.recv()).await, None);
}

#[tokio::test]
async fn nrh_02_connection_start_and_end_are_reported_once() {
    let server = server().await;
    let mut events = watch(&server);
    let client = silent_client(&server).await;
    let socket = RpcAddress::from(client.local_addr());
    assert_eq!(next(&mut events).await, ("connected", socket.clone()));
    client.close();
    assert_eq!(next(&mut events).await, ("disconnected", socket));
    soon(server.shutdown()).await;
    assert_eq!(next(&mut events).await.0, "stop");
    assert_eq!(soon(events.recv()).await, None);
}

#[tokio::test]
async fn endpoint_without_connection_events_receives_none() {
    let (server, client) = (server().await, client().await);
    let mut events = watch(&server);
    let (tx, mut silent) = mpsc::unbounded_channel();
    let options = EndpointOptions::new().connection_events(false);
    server.setup_endpoint_with("silent", Watch(tx), options).unwrap();
    let watcher =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "silent")).await.unwrap();
    until(&mut events, "connected", |_| true).await;
    assert_eq!(
        soon(watcher.ask(hi("messages are delivered"))).await.unwrap_err().kind(),
        ErrorKind::NoReply
    );
    soon(client.shutdown()).await;
    until(&mut events, "disconnected", |_| true).await;
    soon(server.shutdown()).await;
    assert_eq!(next(&mut silent).await.0, "stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fault_u7_connections_close_when_env_is_dropped_on_several_threads() {
    let server = server().await;
    let mut events = watch(&server);
    for _ in 0..30 {
        let client = client().await;
        let found = client.setup_endpoint_ref::<HelloMessage>(address(&server), "watch");
        drop(soon(found).await.unwrap());
        drop(client);
        until(&mut events, "disconnected", |_| true).await;
    }
}

#[tokio::test]
async fn client_connections_close_when_env_and_refs_are_dropped() {
    let (server, client) = (server().await, client().await);
    let mut events = watch(&server);
    let watcher =
        soon(client.setup_endpoint_ref::<HelloMessage>(address(&server), "watch")).await.unwrap();
    let (_, socket) = next(&mut events).await;
    drop(client);
    watcher.send(hi("the ref keeps the connection open")).unwrap();
    drop(watcher);
    until(&mut events, "disconnected", |address| *address == socket).await;
}

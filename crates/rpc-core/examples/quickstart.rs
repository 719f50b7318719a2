//! Two environments in one process, over TCP: `cargo run --release --example quickstart`.

use rpc_core::{EndpointContext, RpcAddress, RpcEnv, RpcError, ThreadSafeRpcEndpoint};

use crate::hello::{Greeting, HelloMessage, SayBye, SayHi};

mod hello {
    rpc_core::include_proto!("hello");
}

/// Says what happens to it.
struct Hello;

impl ThreadSafeRpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn on_start(&mut self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        if let Some(itself) = cx.self_ref() {
            println!("[server] on_start         {itself}");
        }
        Ok(())
    }

    async fn receive(
        &mut self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => context.reply(Greeting { text: format!("hi, {}", hi.msg) }),
            HelloMessage::SayBye(bye, context) => {
                context.reply(Greeting { text: format!("bye, {}", bye.msg) })
            }
        }
    }

    async fn on_connected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        println!("[server] on_connected     {remote}");
        Ok(())
    }

    async fn on_disconnected(
        &mut self,
        remote: RpcAddress,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        println!("[server] on_disconnected  {remote}");
        Ok(())
    }

    async fn on_stop(&mut self, _cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        println!("[server] on_stop");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    control_plane().await?;
    Ok(())
}

/// Small typed messages to a named endpoint.
async fn control_plane() -> anyhow::Result<()> {
    let server = RpcEnv::builder("hello-server").bind("127.0.0.1:0").start().await?;
    server.setup_endpoint("hello-service", Hello)?;
    let address = server.address().expect("a server has an address").clone();

    let client = RpcEnv::builder("hello-client").client_mode().start().await?;
    let hello = client.setup_endpoint_ref::<HelloMessage>(address, "hello-service").await?;
    println!("[client] found            {hello}");

    let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    println!("[client] SayHi answered   {}", greeting.text);
    let greeting = hello.ask(SayBye { msg: "neo".to_owned() }).await?;
    println!("[client] SayBye answered  {}", greeting.text);

    client.shutdown().await;
    server.shutdown().await;
    Ok(())
}

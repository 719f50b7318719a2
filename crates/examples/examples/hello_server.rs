//! The server of the Hello example.
//!
//! Run `cargo run --example hello_server`, and then `cargo run --example hello_client` in another
//! terminal.

use rpc_core::{EndpointContext, RpcEndpoint, RpcEnv, RpcError};

use examples::hello::{Greeting, HelloMessage};

/// An endpoint that handles requests concurrently.
///
/// Its methods take `&self`: while one handler awaits something, others run. Mutable state of such
/// an endpoint needs a lock.
struct Hello;

impl RpcEndpoint for Hello {
    type Message = HelloMessage;

    async fn on_start(&self, cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        println!("start {}", cx.self_ref());
        Ok(())
    }

    async fn receive(
        &self,
        message: HelloMessage,
        _cx: &EndpointContext<HelloMessage>,
    ) -> Result<(), RpcError> {
        match message {
            HelloMessage::SayHi(hi, context) => {
                println!("received hi from {}", hi.msg);
                context.reply(Greeting { text: format!("hi, {}", hi.msg) })
            }
            HelloMessage::SayBye(bye, context) => {
                println!("received bye from {}", bye.msg);
                context.reply(Greeting { text: format!("bye, {}", bye.msg) })
            }
        }
    }

    async fn on_stop(&self, _cx: &EndpointContext<HelloMessage>) -> Result<(), RpcError> {
        println!("stop hello endpoint");
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let env = RpcEnv::builder("hello-server").bind("127.0.0.1:52345").start().await?;
    env.setup_endpoint("hello-service", Hello)?;

    let stopping = env.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopping.shutdown().await;
        }
    });
    env.await_termination().await;
    Ok(())
}

//! The client of the Hello example. Start `hello_server` first.

use rpc_core::{RpcAddress, RpcEnv};

use examples::hello::{HelloMessage, SayBye, SayHi};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let env = RpcEnv::builder("hello-client").client_mode().start().await?;
    let server = RpcAddress::new("127.0.0.1", 52345);
    let hello = env.setup_endpoint_ref::<HelloMessage>(server, "hello-service").await?;

    let greeting = hello.ask(SayHi { msg: "neo".to_owned() }).await?;
    println!("{}", greeting.text);
    // Retries only after errors that guarantee that the request was not handled.
    let greeting = hello.ask_with_retry(SayBye { msg: "neo".to_owned() }).await?;
    println!("{}", greeting.text);

    env.shutdown().await;
    Ok(())
}

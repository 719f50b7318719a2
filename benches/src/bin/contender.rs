//! Ours and the limits as measured processes.

use anyhow::Context;
use benches::codec::Codec;
use benches::limits::{
    Batched, Channel, Cipher, Mixed, PingPong, RawChunks, Smallest, Timer, serve_chunks,
    serve_echo, serve_mixed,
};
use benches::load::Calls;
use benches::ours::{self, RpcClient, RpcServer, Security, TransportCalls};
use benches::process::{Arguments, Role, Serving, drive, serve};
use benches::{Chunks, actors};
use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Serve { kind, file } => {
            let chunks = file.as_deref().map(Chunks::of).transpose()?;
            match kind.as_str() {
                "ours" | "ours-ctr" | "ours-gcm" | "ours-tls" => {
                    let server = ours::serve(chunks, Security::of(&kind)?).await?;
                    serve(server.local_addr(), Serving(server)).await
                }
                "ours-rpc" => {
                    let server = RpcServer::start().await?;
                    serve(server.address()?, server).await
                }
                "echo" => serve(serve_echo().await?, Serving(())).await,
                "chunks" => {
                    serve(serve_chunks(chunks.context("--file is needed")?).await?, Serving(()))
                        .await
                }
                "mixed" => {
                    serve(serve_mixed(chunks.context("--file is needed")?).await?, Serving(()))
                        .await
                }
                other => anyhow::bail!("no server {other}"),
            }
        }
        Role::Drive { kind, address: None } => match kind.as_str() {
            "codec" => drive(Codec::default()).await,
            "ours-local" => drive(ours::local_endpoints().await?).await,
            "ours-loopback" => {
                let server = RpcServer::start().await?;
                drive(RpcClient::new(server.address()?)?).await
            }
            "cipher-ctr" => drive(Cipher::Ctr).await,
            "cipher-gcm" => drive(Cipher::Gcm).await,
            "cipher-tls" => drive(Cipher::Tls).await,
            "channel" => drive(actors::Local::new(|| Ok(Channel::start()))).await,
            "timer" => drive(Timer::default()).await,
            other => anyhow::bail!("no contender {other} without a server"),
        },
        Role::Drive { kind, address: Some(address) } => match kind.as_str() {
            "ours" | "ours-ctr" | "ours-gcm" | "ours-tls" => {
                drive(TransportCalls::new(address, Security::of(&kind)?)?).await
            }
            "ours-rpc" => drive(RpcClient::new(address)?).await,
            "ping-pong" => drive(PingPong::connect(address).await?).await,
            "batched" => drive(Batched::new(address)).await,
            "smallest" => drive(Calls::<Smallest<false>>::new(address)).await,
            "yielding" => drive(Calls::<Smallest<true>>::new(address)).await,
            "chunks" => drive(RawChunks::connect(address).await?).await,
            "mixed" => drive(Mixed::new(address)).await,
            other => anyhow::bail!("no contender {other}"),
        },
    }
}

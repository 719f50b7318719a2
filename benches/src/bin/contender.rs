//! Runs the server or the client of one contender: `ours*` or a limit.
//!
//! `docs/performance.md` describes the limits, such as `smallest`.

use anyhow::Context;
use benches::codec::Codec;
#[cfg(feature = "security")]
use benches::limits::Cipher;
use benches::limits::{
    Batched, Channel, Mixed, PingPong, RawChunks, Smallest, Timer, serve_chunks, serve_echo,
    serve_mixed,
};
use benches::load::CallClient;
use benches::ours::{self, RpcClient, RpcServer, Security, TransportCallClient};
use benches::process::{Arguments, Role, ServerOnly, drive, serve};
use benches::{Chunks, actors};
use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Serve { kind, file } => {
            let chunks = file.as_deref().map(Chunks::from_file).transpose()?;
            match kind.as_str() {
                "ours" | "ours-ctr" | "ours-gcm" | "ours-tls" => {
                    let server = ours::serve(chunks, Security::from_name(&kind)?).await?;
                    serve(server.local_addr(), ServerOnly(server)).await
                }
                "ours-rpc" => {
                    let server = RpcServer::start().await?;
                    serve(server.address()?, server).await
                }
                "echo" => serve(serve_echo().await?, ServerOnly(())).await,
                "chunks" => {
                    serve(serve_chunks(chunks.context("--file is missing")?).await?, ServerOnly(()))
                        .await
                }
                "mixed" => {
                    serve(serve_mixed(chunks.context("--file is missing")?).await?, ServerOnly(()))
                        .await
                }
                other => anyhow::bail!("there is no server {other}"),
            }
        }
        Role::Drive { kind, address: None } => match kind.as_str() {
            "codec" => drive(Codec::default()).await,
            "ours-local" => drive(ours::local_endpoints().await?).await,
            "ours-loopback" => {
                let server = RpcServer::start().await?;
                drive(RpcClient::new(server.address()?)?).await
            }
            #[cfg(feature = "security")]
            "cipher-ctr" => drive(Cipher::Ctr).await,
            #[cfg(feature = "security")]
            "cipher-gcm" => drive(Cipher::Gcm).await,
            #[cfg(feature = "security")]
            "cipher-tls" => drive(Cipher::Tls).await,
            "channel" => drive(actors::LocalActors::new(|| Ok(Channel::start()))).await,
            "timer" => drive(Timer::default()).await,
            other => anyhow::bail!("unknown contender {other}, or the server's address is missing"),
        },
        Role::Drive { kind, address: Some(address) } => match kind.as_str() {
            "ours" | "ours-ctr" | "ours-gcm" | "ours-tls" => {
                drive(TransportCallClient::new(address, Security::from_name(&kind)?)?).await
            }
            "ours-rpc" => drive(RpcClient::new(address)?).await,
            "ping-pong" => drive(PingPong::connect(address).await?).await,
            "batched" => drive(Batched::new(address)).await,
            "smallest" => drive(CallClient::<Smallest<false>>::new(address)).await,
            "yielding" => drive(CallClient::<Smallest<true>>::new(address)).await,
            "chunks" => drive(RawChunks::connect(address).await?).await,
            "mixed" => drive(Mixed::new(address)).await,
            other => anyhow::bail!("unknown contender {other}, or it has no server"),
        },
    }
}

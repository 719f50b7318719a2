//! The measured processes of other libraries.
//!
//! `benches::process` documents the command line and the jobs.

use anyhow::Context;
use benches::actors::LocalActors;
use benches::load::{CallClient, Target};
use benches::process::{Arguments, Role, ServerOnly, drive, serve};
use clap::Parser;
use peers::{actix, flight, hyper, kameo, ractor, tarpc, tonic};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Serve { kind, .. } => {
            let address = match kind.as_str() {
                "tarpc" => tarpc::listen().await?,
                "tonic" => tonic::listen().await?,
                "hyper" => hyper::listen().await?,
                "flight" => flight::listen().await?,
                other => anyhow::bail!("there is no server {other}"),
            };
            serve(address, ServerOnly(())).await
        }
        Role::Drive { kind, address } => match kind.as_str() {
            "tarpc" => call::<tarpc::Tarpc>(address).await,
            "tonic" => call::<tonic::Tonic>(address).await,
            "hyper" => call::<hyper::Hyper>(address).await,
            "flight" => call::<flight::Flight>(address).await,
            "actix" => drive(LocalActors::new(actix::starter()?)).await,
            "kameo" => drive(LocalActors::new(|| Ok(kameo::Kameo::start()))).await,
            "ractor" => drive(LocalActors::new(ractor::Ractor::start)).await,
            other => anyhow::bail!("there is no contender {other}"),
        },
    }
}

async fn call<T: Target>(address: Option<std::net::SocketAddr>) -> anyhow::Result<()> {
    drive(CallClient::<T>::new(address.context("the server's address is missing")?)).await
}

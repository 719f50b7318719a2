//! The peers as measured processes: `benches::process` says how they are driven.

use anyhow::Context;
use benches::actors::Local;
use benches::load::{Calls, Target};
use benches::process::{Arguments, Role, Serving, drive, serve};
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
                other => anyhow::bail!("no server {other}"),
            };
            serve(address, Serving(())).await
        }
        Role::Drive { kind, address } => match kind.as_str() {
            "tarpc" => call::<tarpc::Tarpc>(address).await,
            "tonic" => call::<tonic::Tonic>(address).await,
            "hyper" => call::<hyper::Hyper>(address).await,
            "flight" => call::<flight::Flight>(address).await,
            "actix" => drive(Local::new(actix::starter()?)).await,
            "kameo" => drive(Local::new(|| Ok(kameo::Kameo::start()))).await,
            "ractor" => drive(Local::new(ractor::Ractor::start)).await,
            other => anyhow::bail!("no contender {other}"),
        },
    }
}

async fn call<T: Target>(address: Option<std::net::SocketAddr>) -> anyhow::Result<()> {
    drive(Calls::<T>::new(address.context("the server's address is needed")?)).await
}

//! Actor libraries between two processes, as measured processes: `benches::process` says how they
//! are driven. Each as favourably set up as its API reasonably allows; what was chosen stands at
//! the place. With both, a process is one node that has one connection to another, so criterion,
//! which keeps both ends in one process, cannot measure them.

mod kameo;
mod ractor;

use anyhow::Context;
use benches::load::{Calls, Target};
use benches::process::{Arguments, Role, Serving, drive, serve};
use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Serve { kind, .. } => {
            let address = match kind.as_str() {
                "kameo-remote" => kameo::listen().await?,
                "ractor-cluster" => ractor::listen().await?,
                other => anyhow::bail!("no server {other}"),
            };
            serve(address, Serving(())).await
        }
        Role::Drive { kind, address } => match kind.as_str() {
            "kameo-remote" => call::<kameo::Kameo>(address).await,
            "ractor-cluster" => call::<ractor::Ractor>(address).await,
            other => anyhow::bail!("no contender {other}"),
        },
    }
}

async fn call<T: Target>(address: Option<std::net::SocketAddr>) -> anyhow::Result<()> {
    drive(Calls::<T>::new(address.context("the server's address is needed")?)).await
}

//! The measured processes of actor libraries whose actors are in two processes.
//!
//! `benches::process` documents the command line and the jobs. Each library has the fastest set-up
//! that its API reasonably allows, which is documented in its module.
//!
//! In both libraries, a process is one node, and two nodes have one connection. Criterion runs both
//! ends in one process, so it cannot measure them.

mod kameo;
mod ractor;

use anyhow::Context;
use benches::load::{CallClient, Target};
use benches::process::{Arguments, Role, ServerOnly, drive, serve};
use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().role {
        Role::Serve { kind, .. } => {
            let address = match kind.as_str() {
                "kameo-remote" => kameo::listen().await?,
                "ractor-cluster" => ractor::listen().await?,
                other => anyhow::bail!("there is no server {other}"),
            };
            serve(address, ServerOnly(())).await
        }
        Role::Drive { kind, address } => match kind.as_str() {
            "kameo-remote" => call::<kameo::Kameo>(address).await,
            "ractor-cluster" => call::<ractor::Ractor>(address).await,
            other => anyhow::bail!("there is no contender {other}"),
        },
    }
}

async fn call<T: Target>(address: Option<std::net::SocketAddr>) -> anyhow::Result<()> {
    drive(CallClient::<T>::new(address.context("the server's address is missing")?)).await
}

//! A client and a server of the application protocol of `interop/README.md`.
//!
//! `cargo xtask interop` runs them against Spark's own server and client.
//!
//! ```text
//! cargo run --release -p examples -F security --example spark_peer -- server PORT [options]
//! cargo run --release -p examples -F security --example spark_peer -- client HOST PORT [options]
//! ```
//!
//! The server prints `LISTENING <port>`. The last line of the client is `N passed, M failed`.

mod cases;
mod client;
mod protocol;
mod server;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use network_common::auth::{Secret, SecretStore};
use network_common::{RpcHandler, TransportConf, TransportContext};

/// Spark's module name: the `shuffle` in `spark.shuffle.io.serverThreads`.
const MODULE: &str = "shuffle";

const APP_ID: &str = "app-1";

#[derive(Parser)]
#[command(
    name = "spark_peer",
    about = "A client or server of the interoperability tests, over network-common"
)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Listen on 127.0.0.1, print LISTENING <port>, serve until the end of stdin
    Server {
        /// The port; 0 selects a free one
        port: u16,
        #[command(flatten)]
        options: Options,
    },
    /// Run all cases against a server; the last line is: N passed, M failed
    Client {
        host: String,
        port: u16,
        /// The server's Spark release; before 3.2, some cases are skipped
        #[arg(long, value_name = "RELEASE", value_parser = major_and_minor)]
        spark: Option<(u32, u32)>,
        #[command(flatten)]
        options: Options,
    },
}

#[derive(Args)]
struct Options {
    /// Authenticate with this secret; --conf selects the kind of authentication
    #[arg(long)]
    secret: Option<String>,
    /// A setting under Spark's name; can be repeated
    #[arg(long = "conf", value_name = "KEY=VALUE", value_parser = key_and_value)]
    settings: Vec<(String, String)>,
}

impl Options {
    fn context(&self, handler: impl RpcHandler) -> Result<TransportContext> {
        let settings = self.settings.iter().map(|(key, value)| (key, value));
        let context =
            TransportContext::new(TransportConf::from_settings(MODULE, settings)?, handler);
        match &self.secret {
            None => Ok(context),
            Some(secret) => with_auth(context, secret),
        }
    }
}

fn with_auth(context: TransportContext, secret: &str) -> Result<TransportContext> {
    let secrets = SecretStore::new();
    secrets.register_app(APP_ID, Secret::new(secret));
    Ok(context.with_auth(APP_ID, Arc::new(secrets))?)
}

fn key_and_value(text: &str) -> Result<(String, String)> {
    let (key, value) = text.split_once('=').context("the setting is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn major_and_minor(text: &str) -> Result<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("this is not a Spark release such as 3.5.7"),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the server or the client, and returns whether all cases passed.
async fn run(arguments: Arguments) -> Result<bool> {
    match arguments.role {
        Role::Server { port, options } => {
            server::serve(options.context(server::PeerHandler::default())?, port).await?;
            Ok(true)
        }
        Role::Client { host, port, spark, options } => {
            let since_3_2 = spark.is_none_or(|release| release >= (3, 2));
            cases::run(options.context(client::CallbackHandler)?, host, port, since_3_2).await
        }
    }
}

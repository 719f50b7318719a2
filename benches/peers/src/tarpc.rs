//! tarpc over TCP with bincode, which has the shortest messages of its formats.
//!
//! The capacities of its queues exceed the number of requests in flight. The server spawns a task
//! for each request, as the documentation of tarpc does.

use std::future::ready;
use std::net::SocketAddr;

use benches::load::{Request, Target};
use benches::protocol::Case;
use bytes::Bytes;
use futures::StreamExt;
use tarpc::server::{BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::{client, context, serde_transport};

const IN_FLIGHT: usize = 4096;

#[::tarpc::service]
trait TarpcEcho {
    async fn echo(body: Bytes) -> Bytes;
}

#[derive(Clone)]
struct EchoServer;

impl TarpcEcho for EchoServer {
    async fn echo(self, _: context::Context, body: Bytes) -> Bytes {
        body
    }
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let mut incoming = serde_transport::tcp::listen("127.0.0.1:0", Bincode::default).await?;
    let address = incoming.local_addr();
    tokio::spawn(async move {
        while let Some(Ok(connection)) = incoming.next().await {
            if connection.get_ref().set_nodelay(true).is_err() {
                continue;
            }
            let config = tarpc::server::Config { pending_response_buffer: IN_FLIGHT };
            let requests = BaseChannel::new(config, connection).execute(EchoServer.serve());
            tokio::spawn(requests.for_each(|response| {
                tokio::spawn(response);
                ready(())
            }));
        }
    });
    Ok(address)
}

/// A connection.
#[derive(Clone)]
pub struct Tarpc(TarpcEchoClient);

impl Target for Tarpc {
    const CASES: &'static [Case] = &[Case::Echo];
    const IS_EAGER: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let connection = serde_transport::tcp::connect(address, Bincode::default).await?;
        connection.get_ref().set_nodelay(true)?;
        let mut config = client::Config::default();
        config.max_in_flight_requests = IN_FLIGHT;
        config.pending_request_buffer = IN_FLIGHT;
        Ok(Self(TarpcEchoClient::new(config, connection).spawn()))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (client, body, size) = (self.0.clone(), request.body.clone(), request.size);
        async move {
            let response = client.echo(context::current(), body).await?;
            anyhow::ensure!(response.len() == size, "the response has a wrong length");
            Ok(())
        }
    }
}

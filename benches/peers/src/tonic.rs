//! tonic with unary calls and prost's `Bytes`, without timeouts, interceptors and compression.

use std::net::SocketAddr;

use benches::load::{Request, Target};
use benches::protocol::Case;
use tonic::transport::{Channel, Endpoint, Server, server::TcpIncoming};

#[allow(missing_docs)]
mod proto {
    ::tonic::include_proto!("echo");
}
use proto::Body;
use proto::echo_client::EchoClient;
use proto::echo_server::{Echo, EchoServer};

struct EchoService;

#[::tonic::async_trait]
impl Echo for EchoService {
    async fn echo(
        &self,
        request: tonic::Request<Body>,
    ) -> Result<tonic::Response<Body>, tonic::Status> {
        Ok(tonic::Response::new(request.into_inner()))
    }
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    tokio::spawn(
        Server::builder().add_service(EchoServer::new(EchoService)).serve_with_incoming(incoming),
    );
    Ok(address)
}

/// A connection.
#[derive(Clone)]
pub struct Tonic(EchoClient<Channel>);

impl Target for Tonic {
    const CASES: &'static [Case] = &[Case::Echo];
    const IS_EAGER: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
        Ok(Self(EchoClient::new(endpoint.connect().await?)))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (mut client, body, size) = (self.0.clone(), request.body.clone(), request.size);
        async move {
            let response = client.echo(Body { body }).await?.into_inner();
            anyhow::ensure!(response.body.len() == size, "the response has a wrong length");
            Ok(())
        }
    }
}

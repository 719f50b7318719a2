//! hyper over HTTP/1.1: a request per chunk on one connection, the body from memory. HTTP/1 has one
//! request in flight; the client asks for the next one when a body has been read.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use benches::load::{Request, Target};
use benches::protocol::Case;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper::{Response, body::Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::memory;

async fn answer(request: hyper::Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let size = request.uri().path().trim_start_matches('/').parse().unwrap_or_default();
    Ok(Response::new(Full::new(memory(size))))
}

/// Serves at a free port.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if stream.set_nodelay(true).is_ok() {
                let serving = hyper::server::conn::http1::Builder::new();
                tokio::spawn(serving.serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        }
    });
    Ok(address)
}

/// A connection.
#[derive(Clone)]
pub struct Hyper(Arc<Mutex<SendRequest<Empty<Bytes>>>>);

impl Target for Hyper {
    const CASES: &'static [Case] = &[Case::FetchMemory];
    const QUEUES: bool = false;

    async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self(Arc::new(Mutex::new(sender))))
    }

    fn call(&self, request: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (sender, size) = (Arc::clone(&self.0), request.size);
        async move {
            let mut sender = sender.lock().await;
            // The end of the last body may not have come to its task yet.
            sender.ready().await?;
            let request = hyper::Request::get(format!("/{size}"))
                .header("host", "bench")
                .body(Empty::new())?;
            let mut body = sender.send_request(request).await?.into_body();
            // Every byte lands in the receiver's memory; to gather them in one buffer would cost
            // another copy.
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame?.data_ref().map_or(0, Bytes::len);
            }
            anyhow::ensure!(read == size, "a body of the wrong length");
            Ok(())
        }
    }
}

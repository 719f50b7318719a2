//! hyper over HTTP/1.1 with one request per chunk on one connection.
//!
//! The server has the bodies in memory. HTTP/1.1 allows one request in flight, so the client sends
//! the next request when it has read a body.

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

async fn respond(request: hyper::Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let size = request.uri().path().trim_start_matches('/').parse().unwrap_or_default();
    Ok(Response::new(Full::new(memory(size))))
}

/// Starts a server on a free port and returns its address.
pub async fn listen() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if stream.set_nodelay(true).is_ok() {
                let builder = hyper::server::conn::http1::Builder::new();
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(respond)));
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
    const IS_EAGER: bool = false;

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
            // The connection's task may not have processed the end of the last body yet.
            sender.ready().await?;
            let request = hyper::Request::get(format!("/{size}"))
                .header("host", "bench")
                .body(Empty::new())?;
            let mut body = sender.send_request(request).await?.into_body();
            // The body is not collected into one buffer, because that would copy it once more.
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame?.data_ref().map_or(0, Bytes::len);
            }
            anyhow::ensure!(read == size, "the body has a wrong length");
            Ok(())
        }
    }
}

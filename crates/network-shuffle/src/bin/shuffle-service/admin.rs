//! [`AdminEndpoint`]: metrics, health, and the removal of applications, over HTTP.

use std::convert::Infallible;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use heck::AsSnakeCase;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use network_shuffle::ShuffleService;
use tokio::net::{TcpListener, TcpStream};

/// The number of connections that are served at the same time; others wait.
const MAX_CONNECTIONS: usize = 16;
/// The time that a connection may last; it has one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which the header of the request must arrive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// The content type of texts for Prometheus.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// The pause after an error of `accept`, for example when all file descriptors are in use.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

const HELP: &str = "GET /metrics
GET /health
DELETE /applications/<application id>
DELETE /applications/<application id>/executors/<executor id>
";

/// The listener for administrators, if there is one.
pub(crate) struct AdminEndpoint(Option<TcpListener>);

impl AdminEndpoint {
    pub(crate) async fn bind(address: Option<SocketAddr>) -> Result<Self> {
        let Some(address) = address else { return Ok(Self(None)) };
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("set --admin-address {address} to a free address"))?;
        Ok(Self(Some(listener)))
    }

    pub(crate) fn local_addr(&self) -> Result<Option<SocketAddr>> {
        Ok(self.0.as_ref().map(TcpListener::local_addr).transpose()?)
    }

    /// Serves requests until the future is dropped.
    pub(crate) async fn serve(self, service: &ShuffleService) -> Infallible {
        if let Some(listener) = self.0 {
            futures::stream::repeat(&listener)
                .then(accept)
                .for_each_concurrent(MAX_CONNECTIONS, |socket| serve_connection(socket, service))
                .await;
        }
        std::future::pending().await
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of an administrator");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

async fn serve_connection(socket: TcpStream, service: &ShuffleService) {
    let respond = service_fn(|request| respond(request, service));
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(socket), respond);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request of an administrator failed"),
        Err(_) => tracing::debug!("a connection of an administrator took too long"),
    }
}

async fn respond(
    request: Request<Incoming>,
    service: &ShuffleService,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let (status, text) = match (request.method(), &path[..]) {
        (&Method::GET, ["metrics"]) => (StatusCode::OK, metrics_text(service)),
        (&Method::GET, ["health"]) => (StatusCode::OK, String::from("serving\n")),
        (&Method::DELETE, ["applications", app_id]) if !app_id.is_empty() => {
            match service.application_removed(app_id, true).await {
                Ok(()) => (StatusCode::OK, String::from("removed\n")),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            }
        }
        (&Method::DELETE, ["applications", app_id, "executors", exec_id])
            if !app_id.is_empty() && !exec_id.is_empty() =>
        {
            service.executor_removed(app_id, exec_id);
            (StatusCode::OK, String::from("removed\n"))
        }
        _ => (StatusCode::NOT_FOUND, String::from(HELP)),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    Ok(response)
}

/// Returns all counters in the text format of Prometheus.
fn metrics_text(service: &ShuffleService) -> String {
    let mut text = String::new();
    let mut add = |prefix, name: &str, value| {
        // Writing to a string succeeds.
        let _ = writeln!(text, "shuffle_service_{prefix}{} {value}", AsSnakeCase(name));
    };
    for (name, value) in service.metrics().named_values() {
        add("", name, value);
    }
    for (name, value) in service.transport_metrics().server().named_values() {
        // Without the name of the module.
        let name = name.split_once('.').map_or(&*name, |(_, name)| name);
        add("transport_", name, value);
    }
    text
}

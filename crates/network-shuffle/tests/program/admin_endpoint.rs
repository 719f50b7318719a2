//! Metrics, health and the removal of applications, over HTTP.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::running_program::{Program, command, error_of, settings, value};
use crate::support::*;

/// Starts the program with an admin endpoint; returns its address.
fn start(dir: &std::path::Path) -> (Program, SocketAddr) {
    let mut command = command(&settings(dir, &[]));
    let mut program = Program::start(command.args(["--admin-address", "127.0.0.1:0"]));
    let output = program.read_until("administration: http://");
    let line = output.lines().last().unwrap();
    let address = line.trim_start_matches("administration: http://").trim_end_matches("/metrics");
    (program, address.parse().unwrap())
}

/// Sends a request; returns the status and the body of the response.
fn request(address: SocketAddr, method_and_path: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    write!(socket, "{method_and_path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut response = String::new();
    socket.read_to_string(&mut response).unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    // Prometheus rejects a response without it.
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn ess_21_metrics_are_served_over_http() {
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let (program, address) = start(dir.path());
    executor.register(&program.connect().await).await;
    let (status, metrics) = request(address, "GET /metrics");
    assert_eq!(status, 200);
    assert_eq!(value(&metrics, "shuffle_service_register_executor_requests"), 1);
    assert_eq!(value(&metrics, "shuffle_service_registered_executors_size"), 1);
    assert!(value(&metrics, "shuffle_service_transport_received_bytes") > 0);
    assert_eq!(request(address, "GET /health"), (200, String::from("serving\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn ess_14_application_is_removed_over_http() {
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let (program, address) = start(dir.path());
    let client = program.connect().await;
    executor.register(&client).await;
    assert_eq!(request(address, "DELETE /applications/other").0, 200);
    assert_eq!(request(address, &format!("DELETE /applications/{APP}/executors/{EXEC}")).0, 200);
    open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    assert_eq!(request(address, &format!("DELETE /applications/{APP}")).0, 200);
    let (_, metrics) = request(address, "GET /metrics");
    assert_eq!(value(&metrics, "shuffle_service_registered_executors_size"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ess_21_malformed_admin_requests_do_not_end_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let (program, address) = start(dir.path());
    // More connections than are served at the same time, which send nothing and end.
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(address).unwrap()).collect();
    drop(silent);
    for text in [
        "GET /other",
        "DELETE /applications/",
        "DELETE /applications//executors/1",
        "POST /metrics",
        "DELETE /metrics",
    ] {
        let (status, help) = request(address, text);
        assert_eq!(status, 404, "{text}");
        assert!(help.contains("GET /metrics"), "{help}");
    }
    let mut socket = TcpStream::connect(address).unwrap();
    // The service may close the connection before it has read everything.
    let _ = socket.write_all(&[b'x'; 1 << 20]);
    let _ = socket.read_to_end(&mut Vec::new());
    assert_eq!(request(address, "GET /health").0, 200);
    program.connect().await;
}

#[test]
fn ess_17_admin_address_in_use_is_named_in_error() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut command = command(&settings(dir.path(), &[]));
    let error = error_of(command.args(["--admin-address", &address]));
    assert!(error.contains("--admin-address") && error.contains(&address), "{error}");
}

//! Downloads with `RpcEnv::open_channel`: progress, errors, connection reuse, shutdown. The peer
//! is the file server of another environment.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use common::{address, client, server, setting, soon};
use futures::TryStreamExt;
use rpc_core::{Download, ErrorKind, MemoryNetwork, RpcConf, RpcEnv, RpcError};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

/// A file size that exceeds all buffers between the file and the reader together.
const LARGE: u64 = 64 << 20;

fn create_large_file(directory: &Path) -> PathBuf {
    let path = directory.join("create_large_file");
    File::create(&path).unwrap().set_len(LARGE).unwrap();
    path
}

async fn add_file(server: &RpcEnv, path: impl Into<PathBuf>) -> String {
    soon(server.file_server().add_file(path)).await.unwrap()
}

/// Reads to the end, and returns the number of bytes.
async fn read_to_end_of(download: &mut Download) -> Result<u64, RpcError> {
    let mut length = 0;
    while let Some(piece) = soon(download.next_piece()).await {
        length += piece?.len() as u64;
    }
    Ok(length)
}

async fn start_download(env: &RpcEnv, uri: &str) -> Download {
    let mut download = soon(env.open_channel(uri)).await.unwrap();
    assert!(!soon(download.next_piece()).await.unwrap().unwrap().is_empty());
    download
}

#[tokio::test]
async fn rpc_env_34_download_reports_length_and_remaining_bytes() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    fs::write(temp.path().join("name"), "content").unwrap();
    let uri = add_file(&server, temp.path().join("name")).await;

    let mut download = soon(client.open_channel(&uri)).await.unwrap();
    assert_eq!((download.uri(), download.len(), download.remaining()), (&*uri, 7, 7));
    let mut start = [0; 3];
    soon(download.read_exact(&mut start)).await.unwrap();
    assert_eq!((&start, download.remaining()), (b"con", 4));
    let mut rest = String::new();
    soon(download.read_to_string(&mut rest)).await.unwrap();
    assert_eq!((rest.as_str(), download.remaining()), ("tent", 0));

    let download = soon(client.open_channel(&uri)).await.unwrap();
    let pieces: Vec<_> = soon(download.try_collect()).await.unwrap();
    assert_eq!(pieces.concat(), b"content");
}

#[tokio::test]
async fn rpc_env_34_incomplete_uri_is_rejected() {
    let client = client().await;
    for (uri, why) in [
        ("", "spark://"),
        ("http://host:1/files/x", "spark://"),
        ("spark://", "Host name must be defined."),
        ("spark:///files/x", "Host name must be defined."),
        ("spark://:1/files/x", "Host name must be defined."),
        ("spark://host/files/x", "Port must be defined."),
        ("spark://host:0/files/x", "Port must be defined."),
        ("spark://host:port/files/x", "not a number"),
        ("spark://host:1", "Path must be defined."),
        ("spark://host:1/files/x?y", "query"),
        ("spark://host:1/files/x#y", "fragment"),
        ("spark://host:1/files/%ff", "UTF-8"),
    ] {
        let error = soon(client.open_channel(uri)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress, "{uri}");
        let text = format!("{error:#}");
        assert!(
            text.starts_with(&format!("cannot download {uri}: ")) && text.contains(why),
            "{text}"
        );
    }
}

#[tokio::test]
async fn rpc_env_34_unreachable_server_is_named_in_error() {
    // The port is free: the listener was bound and dropped.
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let uri = format!("spark://{unused}/files/name");
    let error = soon(client().await.open_channel(&uri)).await.unwrap_err();
    assert_eq!((error.kind(), error.peer()), (ErrorKind::Network, Some(&*unused.to_string())));
    assert!(error.is_retryable() && !error.is_remote());
    assert!(error.to_string().contains(&uri), "{error}");
}

#[tokio::test]
async fn rpc_env_34_file_that_shrinks_fails_download_after_sent_bytes() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let path = create_large_file(temp.path());
    let uri = add_file(&server, &path).await;
    let mut download = start_download(&client, &uri).await;
    File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let error = read_to_end_of(&mut download).await.unwrap_err();
    let done = LARGE - download.remaining();
    assert!(done > 0 && done < LARGE, "{done}");
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.is_retryable(), "{error:?}");
    assert!(
        error.to_string().contains(&format!("{uri} broke off after {done} of {LARGE} bytes")),
        "{error}"
    );
    assert!(soon(download.next_piece()).await.is_none());
    // The next download of the file succeeds.
    let mut again = soon(client.open_channel(&uri)).await.unwrap();
    assert_eq!(read_to_end_of(&mut again).await.unwrap(), 1000);

    // AsyncRead reports the same error.
    File::options().write(true).open(&path).unwrap().set_len(LARGE).unwrap();
    let mut download = start_download(&client, &uri).await;
    File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let error = soon(tokio::io::copy(&mut download, &mut tokio::io::sink())).await.unwrap_err();
    assert!(error.to_string().contains(&uri), "{error}");
    assert_eq!(error.downcast::<RpcError>().unwrap().kind(), ErrorKind::Network);
}

/// A removed file stays readable while it is open on Unix.
#[cfg(unix)]
#[tokio::test]
async fn rpc_env_34_file_removed_during_download_arrives_whole() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let path = create_large_file(temp.path());
    let uri = add_file(&server, &path).await;
    let mut download = start_download(&client, &uri).await;
    fs::remove_file(&path).unwrap();
    let rest = download.remaining();
    assert_eq!(read_to_end_of(&mut download).await.unwrap(), rest);
}

#[tokio::test]
async fn unread_download_does_not_block_another() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let uri = add_file(&server, create_large_file(temp.path())).await;
    let mut first = soon(client.open_channel(&uri)).await.unwrap();
    // The first download is not read meanwhile.
    let mut second = soon(client.open_channel(&uri)).await.unwrap();
    assert_eq!(read_to_end_of(&mut second).await.unwrap(), LARGE);
    assert_eq!(read_to_end_of(&mut first).await.unwrap(), LARGE);
}

#[tokio::test]
async fn connection_is_reused_for_next_download() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let uri = add_file(&server, create_large_file(temp.path())).await;
    let connections = || server.snapshot().server.connections_total;
    for _ in 0..3 {
        let mut download = soon(client.open_channel(&uri)).await.unwrap();
        assert_eq!(read_to_end_of(&mut download).await.unwrap(), LARGE);
        drop(download);
        let missing = format!("{}/files/missing", address(&server).to_spark_url());
        assert_eq!(
            soon(client.open_channel(&missing)).await.unwrap_err().kind(),
            ErrorKind::FileUnavailable
        );
        assert_eq!(connections(), 1);
    }
    // A dropped download closes its connection, so that the rest is not sent.
    drop(start_download(&client, &uri).await);
    soon(async {
        while server.snapshot().server.connections > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    read_to_end_of(&mut start_download(&client, &uri).await).await.unwrap();
    assert_eq!(connections(), 2);
}

#[tokio::test]
async fn idle_connection_closed_by_server_is_replaced() {
    let network = MemoryNetwork::new();
    let start = async || {
        RpcEnv::builder("server")
            .bind("10.0.0.1:7077")
            .memory_network(&network)
            .start()
            .await
            .unwrap()
    };
    let client =
        RpcEnv::builder("client").client_mode().memory_network(&network).start().await.unwrap();
    let temp = TempDir::new().unwrap();
    fs::write(temp.path().join("name"), "content").unwrap();
    for _ in 0..3 {
        let server = start().await;
        let uri = add_file(&server, temp.path().join("name")).await;
        let mut download = soon(client.open_channel(&uri)).await.unwrap();
        assert_eq!(read_to_end_of(&mut download).await.unwrap(), 7);
        drop(download);
        soon(server.shutdown()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_download_connection_is_closed_after_timeout() {
    let network = MemoryNetwork::new();
    let server = RpcEnv::builder("server")
        .bind("10.0.0.1:7077")
        .memory_network(&network)
        .start()
        .await
        .unwrap();
    // The `spark.rpc` setting applies when there is no `spark.files` setting.
    let conf = setting("spark.rpc.io.connectionTimeout", "7s");
    let client = RpcEnv::builder("client")
        .client_mode()
        .conf(conf)
        .memory_network(&network)
        .start()
        .await
        .unwrap();
    let missing = "spark://10.0.0.1:7077/files/missing";
    let started = tokio::time::Instant::now();
    assert_eq!(client.open_channel(missing).await.unwrap_err().kind(), ErrorKind::FileUnavailable);
    assert_eq!(server.snapshot().server.connections, 1);
    while server.snapshot().server.connections > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let elapsed = started.elapsed().as_secs_f64();
    assert!((7.0..9.0).contains(&elapsed), "{elapsed}");
}

#[tokio::test]
async fn invalid_download_settings_fail_start() {
    for key in ["spark.files.io.connectionTimeout", "spark.files.io.numConnectionsPerPeer"] {
        let conf = RpcConf::new().with(key, "soon").unwrap();
        let error = RpcEnv::builder("env").client_mode().conf(conf).start().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains(key), "{error}");
    }
    // A `spark.files` setting takes precedence over the `spark.rpc` setting.
    let conf =
        setting("spark.rpc.io.retryWait", "5s").with("spark.files.io.retryWait", "1s").unwrap();
    RpcEnv::builder("env").client_mode().conf(conf).start().await.unwrap();
}

#[tokio::test]
async fn shutdown_finishes_active_download_that_is_read() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let uri = add_file(&server, create_large_file(temp.path())).await;
    let mut download = start_download(&client, &uri).await;
    let rest = download.remaining();
    let shutdown = server.shutdown();
    assert_eq!(read_to_end_of(&mut download).await.unwrap(), rest);
    soon(shutdown).await;
    drop(download);
    let error = soon(client.open_channel(&uri)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.to_string().contains(&uri), "{error}");
}

#[tokio::test]
async fn shutdown_aborts_download_that_is_not_read() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let uri = add_file(&server, create_large_file(temp.path())).await;
    let mut download = start_download(&client, &uri).await;
    // The download is not read during the shutdown.
    soon(server.shutdown()).await;
    let error = read_to_end_of(&mut download).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network);
    assert!(error.to_string().contains(&uri), "{error}");
}

#[tokio::test]
async fn client_shutdown_fails_its_downloads() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let uri = add_file(&server, create_large_file(temp.path())).await;
    let mut download = start_download(&client, &uri).await;
    soon(client.shutdown()).await;
    let error = read_to_end_of(&mut download).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);
    assert!(error.to_string().contains(&uri), "{error}");
    assert_eq!(soon(client.open_channel(&uri)).await.unwrap_err().kind(), ErrorKind::Stopped);
}

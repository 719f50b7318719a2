//! Release hooks are user code: a hook that uses its own connection must not deadlock.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, RpcHandler, RpcResponseCallback, StreamManager, TransportClient,
    TransportConf, TransportContext,
};

/// Serves chunks whose release hook uses their connection.
struct Chunks(SyncSender<()>);

fn body_with_hook(
    client: &TransportClient,
    released: &SyncSender<()>,
    length: usize,
) -> ManagedBuffer {
    let (client, released) = (client.clone(), released.clone());
    ManagedBuffer::from(vec![1; length]).on_release(move || {
        let _ = client.pending_requests();
        // The connection may be closed by now; the call only has to return.
        let _ = client.send("released");
        drop(client);
        released.send(()).expect("the test holds the receiver");
    })
}

impl StreamManager for Chunks {
    fn get_chunk<'a>(
        &'a self,
        client: &'a TransportClient,
        _: i64,
        length: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async move { Ok(body_with_hook(client, &self.0, length as usize)) })
    }
}

impl RpcHandler for Chunks {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn receive_stream(
        &self,
        _: &TransportClient,
        meta: Bytes,
        _: network_common::StreamBody,
    ) -> BoxFuture<'static, Result<Bytes, BoxError>> {
        Box::pin(async move { Ok(meta) })
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

/// Runs `test` with a new connection on a detached thread, because a deadlocked hook never returns.
fn run(test: impl AsyncFnOnce(TransportClient, SyncSender<()>) + Send + 'static) -> Receiver<()> {
    let (released, releases) = sync_channel(100);
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let context =
                TransportContext::new(TransportConf::new("test"), Chunks(released.clone()));
            let server = context.create_server("127.0.0.1:0").await.expect("server");
            let factory = context.create_client_factory();
            let client = factory.create_client(server.local_addr()).await.expect("client");
            test(client, released).await;
        });
    });
    releases
}

fn released(releases: &Receiver<()>) {
    releases.recv_timeout(Duration::from_secs(10)).expect("the hook deadlocked or did not run");
}

#[test]
fn mwh_06_hook_can_use_connection_after_its_body_was_written() {
    let releases = run(async |client, _| {
        for length in [0, 10, 100_000] {
            let chunk = client.fetch_chunk(1, length).await.expect("chunk");
            assert_eq!(chunk.len(), length as usize);
        }
        client.closed().await;
    });
    (0..3).for_each(|_| released(&releases));
}

#[test]
fn mwh_06_hook_can_use_connection_after_its_upload_was_written() {
    let releases = run(async |client, released| {
        let data = body_with_hook(&client, &released, 100_000);
        assert_eq!(client.upload_stream("meta", data).await.expect("response"), "meta");
        client.closed().await;
    });
    released(&releases);
}

#[test]
fn mwh_06_hook_can_use_connection_when_its_upload_is_rejected() {
    let releases = run(async |client, released| {
        client.close();
        client.closed().await;
        let data = body_with_hook(&client, &released, 100_000);
        client.upload_stream("meta", data).await.expect_err("closed");
    });
    released(&releases);
}

/// The peer reads nothing, so the body is still queued when the connection ends.
#[test]
fn mwh_06_hook_can_use_connection_when_connection_ends() {
    let (released_by, releases) = sync_channel(100);
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listener");
            let context =
                TransportContext::new(TransportConf::new("test"), Chunks(released_by.clone()));
            let factory = context.create_client_factory();
            let address = silent.local_addr().expect("address");
            let client = factory.create_client(address).await.expect("client");
            let (socket, _) = silent.accept().await.expect("accepted");
            let uploads: Vec<_> = (0..2)
                .map(|_| {
                    client.upload_stream("meta", body_with_hook(&client, &released_by, 12 << 20))
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(socket);
            for upload in uploads {
                upload.await.expect_err("the connection ended");
            }
            // The driver drops the batch that it was writing.
            client.closed().await;
            drop(client);
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
    });
    (0..2).for_each(|_| released(&releases));
}

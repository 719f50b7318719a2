//! The lifetime of a stream body after all handles of its client were dropped.

#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use futures::future::BoxFuture;
use network_common::{
    BoxError, ManagedBuffer, RpcHandler, RpcResponseCallback, StreamManager, TransportClient,
    TransportConf, TransportContext,
};

struct OneStream(Bytes);

impl RpcHandler for OneStream {
    fn receive(&self, _: &TransportClient, message: Bytes, callback: RpcResponseCallback) {
        callback.reply(message);
    }

    fn stream_manager(&self) -> &dyn StreamManager {
        self
    }
}

impl StreamManager for OneStream {
    fn get_chunk<'a>(
        &'a self,
        _: &'a TransportClient,
        _: i64,
        _: i32,
    ) -> BoxFuture<'a, Result<ManagedBuffer, BoxError>> {
        Box::pin(async { Err("only a stream".into()) })
    }

    fn open_stream<'a>(
        &'a self,
        _: &'a TransportClient,
        _: &'a str,
    ) -> BoxFuture<'a, Result<Option<ManagedBuffer>, BoxError>> {
        Box::pin(async { Ok(Some(self.0.clone().into())) })
    }
}

/// A body that is being read keeps its connection open without any handle.
#[tokio::test]
async fn str_02_body_keeps_connection_open_without_handle() {
    let content = vec![7; 20 << 20];
    let context =
        TransportContext::new(TransportConf::new("test"), OneStream(content.clone().into()));
    let server = context.create_server("127.0.0.1:0").await.unwrap();
    let factory = context.create_client_factory();
    let client = factory.create_unmanaged_client(server.local_addr()).await.unwrap();
    let mut body = client.stream("it").await.unwrap();
    drop((client, factory));
    let mut received = 0;
    while let Some(piece) = body.next_piece().await {
        received += piece.unwrap().len();
    }
    assert_eq!(received, content.len());
}

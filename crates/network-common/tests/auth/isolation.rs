//! Applications that share one server and cannot read each other's data: the part of Spark's
//! `AppIsolationSuite` that concerns the transport.

use std::sync::Arc;

use network_common::{
    ErrorKind, ManagedBuffer, OneForOneStreamManager, StreamOptions, TransportContext,
    TransportError,
};

use crate::fixture::*;
use crate::support::*;

/// Registers two chunks for the application that the request names, if the client is authenticated
/// as that application.
fn block_handler() -> Handler {
    let streams = Arc::new(OneForOneStreamManager::new());
    let manager = Arc::clone(&streams);
    Handler::new().with_manager(manager).on_rpc(move |client, app, callback| {
        let app = String::from_utf8(app.to_vec()).unwrap();
        if client.client_id() != Some(&app) {
            let id = client.client_id().unwrap_or_default();
            return callback.fail(format!(
                "java.lang.SecurityException: Client for {id} not authorized for application {app}."
            ));
        }
        let chunks = ["one", "two"].map(ManagedBuffer::from);
        let id = streams.register_stream(chunks, StreamOptions::default().app_id(app));
        callback.reply(id.to_string());
    })
}

fn assert_forbidden(error: &TransportError, kind: ErrorKind) {
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().contains("java.lang.SecurityException"), "{error}");
}

async fn applications_are_isolated(mode: &Mode) {
    let both = secrets("app-1", "first");
    both.register_app("app-2", network_common::auth::Secret::new("second"));
    let context = TransportContext::new(conf(mode.settings), block_handler())
        .with_auth("app-1", both)
        .unwrap();
    let server = serve(&context).await;
    let one = Client::with(mode.settings, "app-1", "first", None)
        .connect(server.local_addr())
        .await
        .unwrap();
    let two = Client::with(mode.settings, "app-2", "second", None)
        .connect(server.local_addr())
        .await
        .unwrap();

    assert_forbidden(&within(one.send_rpc("app-2")).await.unwrap_err(), ErrorKind::Remote);
    let id = within(one.send_rpc("app-1")).await.unwrap();
    let id: i64 = std::str::from_utf8(&id).unwrap().parse().unwrap();
    assert_forbidden(
        &within(two.fetch_chunk(id, 0)).await.unwrap_err(),
        ErrorKind::ChunkFetchFailure,
    );
    assert_forbidden(
        &within(two.stream(&format!("{id}_0"))).await.unwrap_err(),
        ErrorKind::StreamFailure,
    );
    // The rejected requests consumed no chunk.
    assert_eq!(within(one.fetch_chunk(id, 0)).await.unwrap(), "one", "{}", mode.name);
    let body = within(one.stream(&format!("{id}_1"))).await.unwrap();
    assert_eq!(within(body.collect()).await.unwrap(), "two", "{}", mode.name);
}

#[tokio::test]
async fn iso_01_applications_are_isolated_with_sasl() {
    for mode in MODES.iter().filter(|mode| mode.name.starts_with("sasl")) {
        applications_are_isolated(mode).await;
    }
}

#[tokio::test]
async fn iso_02_applications_are_isolated_with_auth_engine() {
    for mode in MODES.iter().filter(|mode| !mode.name.starts_with("sasl")) {
        applications_are_isolated(mode).await;
    }
}

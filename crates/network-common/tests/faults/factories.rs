//! U7: a client works as long as its handle lives.

use network_common::{ErrorKind, NoOpRpcHandler};

use crate::support::*;

/// README does the same: the factory is dropped at the end of the statement.
#[tokio::test]
async fn fault_u7_client_of_temporary_factory_works_while_its_handle_lives() {
    let (gone, mut going) = tokio::sync::mpsc::unbounded_channel();
    let handler = Handler::new().on_inactive(move |_| gone.send(()).unwrap());
    let serving = context(conf(&[]), handler);
    let server = serve(&serving).await;
    let connecting = context(conf(&[]), NoOpRpcHandler::new());
    let client = within(connecting.create_client_factory().create_client(server.local_addr()))
        .await
        .unwrap();
    for _ in 0..3 {
        tokio::task::yield_now().await;
        assert_eq!(within(client.send_rpc("x")).await.unwrap(), "x");
    }
    // A pending request, or a clone, keeps the connection as well.
    let (clone, pending) = (client.clone(), client.send_rpc("pending"));
    drop(client);
    assert_eq!(within(pending).await.unwrap(), "pending");
    assert_eq!(within(clone.send_rpc("clone")).await.unwrap(), "clone");
    drop(clone);
    within(going.recv()).await.unwrap();
}

/// `close` ends also the connections whose handles live; later calls fail.
#[tokio::test]
async fn fault_u7_closing_factory_closes_connections_in_use() {
    let pair = pair(Handler::new()).await;
    let clone = pair.factory.clone();
    pair.factory.close();
    assert_eq!(within(pair.client.closed()).await.kind(), ErrorKind::Closed);
    let error = within(clone.create_client(pair.server.local_addr())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

//! A TCP proxy in front of a server, which can close all connections at any byte.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rpc_core::RpcAddress;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

pub struct Proxy {
    pub address: RpcAddress,
    close_all: Arc<Notify>,
    task: AbortHandle,
}

impl Proxy {
    pub async fn start(target: RpcAddress) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.into();
        let close_all = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, target, Arc::clone(&close_all))).abort_handle();
        Ok(Self { address, close_all, task })
    }

    /// Closes all connections, also in the middle of a message.
    pub fn close_all(&self) {
        self.close_all.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: RpcAddress, close_all: Arc<Notify>) {
    let mut connections = JoinSet::new();
    while let Ok((client, from)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(forward(client, from, target.host_port(), Arc::clone(&close_all)));
    }
}

async fn forward(mut client: TcpStream, from: SocketAddr, target: String, close_all: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        () = close_all.notified() => {
            // About half of the connections end with a reset.
            if from.port().is_multiple_of(2) {
                let _ = (client.set_zero_linger(), server.set_zero_linger());
            }
        }
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
    }
}

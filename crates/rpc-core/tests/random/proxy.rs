//! A TCP proxy that cuts connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rpc_core::RpcAddress;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

pub struct Proxy {
    pub address: RpcAddress,
    cut: Arc<Notify>,
    task: AbortHandle,
}

impl Proxy {
    pub async fn start(target: RpcAddress) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.into();
        let cut = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, target, Arc::clone(&cut))).abort_handle();
        Ok(Self { address, cut, task })
    }

    /// Ends all connections, wherever in a message they are.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: RpcAddress, cut: Arc<Notify>) {
    let mut connections = JoinSet::new();
    while let Ok((client, from)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(client, from, target.host_port(), Arc::clone(&cut)));
    }
}

async fn carry(mut client: TcpStream, from: SocketAddr, target: String, cut: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        () = cut.notified() => {
            // Half of them with a reset.
            if from.port() % 2 == 0 {
                let _ = (client.set_zero_linger(), server.set_zero_linger());
            }
        }
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
    }
}

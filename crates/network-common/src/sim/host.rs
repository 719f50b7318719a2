//! [`SimHost`]: listens, resolves names and connects for one host of a simulated network.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::halves::SimStream;
use super::state::SimState;
use crate::address::PeerAddress;

/// The time after which a connection attempt without a response is repeated.
const CONNECT_RETRY: Duration = Duration::from_secs(1);

/// The sender of accepted connections to each listener of a simulation.
pub(super) type Listeners = BTreeMap<SocketAddr, mpsc::UnboundedSender<SimStream>>;

/// One host of a simulated network.
#[derive(Clone)]
pub(crate) struct SimHost {
    pub(super) state: Arc<Mutex<SimState>>,
    pub(super) listeners: Arc<Mutex<Listeners>>,
    pub(super) ip: IpAddr,
}

/// Accepts the connections to one port; dropping it frees the port.
#[derive(Debug)]
pub(crate) struct SimListener {
    pub(crate) address: SocketAddr,
    pub(crate) incoming: mpsc::UnboundedReceiver<SimStream>,
}

impl SimHost {
    /// Listens on a port of this host; port 0 selects the next ephemeral port.
    pub(crate) fn listen(&self, address: SocketAddr) -> io::Result<SimListener> {
        let ip = self.real_ip(address.ip());
        if ip != self.ip && !ip.is_unspecified() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = match address.port() {
            0 => self.state.lock().next_port(self.ip),
            port => port,
        };
        let key = SocketAddr::new(self.ip, port);
        let mut listeners = self.listeners.lock();
        if listeners.get(&key).is_some_and(|accepted| !accepted.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (accepted, incoming) = mpsc::unbounded_channel();
        listeners.insert(key, accepted);
        Ok(SimListener { address: SocketAddr::new(ip, port), incoming })
    }

    /// Returns the addresses that the host name of `address` resolves to.
    ///
    /// # Errors
    /// Kind `NotFound` if the simulation has no such name.
    pub(crate) fn lookup(&self, address: &PeerAddress) -> io::Result<Vec<SocketAddr>> {
        if let Some(address) = address.as_socket_addr() {
            return Ok(vec![address]);
        }
        if address.host() == "localhost" {
            return Ok(vec![SocketAddr::new(self.ip, address.port())]);
        }
        let mut state = self.state.lock();
        let ips = state.names.get(address.host()).cloned().unwrap_or_default();
        if ips.is_empty() {
            state.faults.failed_lookups += 1;
            let text = format!("the simulation has no host name '{}'", address.host());
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(ips.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect())
    }

    /// Connects to one address, with the latency of a round trip.
    ///
    /// # Errors
    /// Kind `ConnectionRefused` if nothing listens there. A partition lets the attempt wait.
    pub(crate) async fn connect(&self, server: SocketAddr) -> io::Result<SimStream> {
        let server = SocketAddr::new(self.real_ip(server.ip()), server.port());
        self.travel(self.ip, server.ip()).await;
        let connected = self.open(server);
        self.travel(server.ip(), self.ip).await;
        connected
    }

    /// Waits until a packet has arrived; repeats it every second while the way is blocked.
    async fn travel(&self, from: IpAddr, to: IpAddr) {
        let mut is_counted = false;
        loop {
            let wait = {
                let mut state = self.state.lock();
                if !state.is_blocked(from, to) {
                    Ok(state.latency(from, to))
                } else {
                    if !std::mem::replace(&mut is_counted, true) {
                        state.faults.held_connects += 1;
                    }
                    Err(CONNECT_RETRY)
                }
            };
            tokio::time::sleep(wait.unwrap_or_else(|retry| retry)).await;
            if wait.is_ok() {
                return;
            }
        }
    }

    /// Opens a connection to a listener.
    fn open(&self, server: SocketAddr) -> io::Result<SimStream> {
        let listeners = self.listeners.lock();
        let Some(listener) = listeners.get(&server).filter(|accepted| !accepted.is_closed()) else {
            self.state.lock().faults.refused_connects += 1;
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        let id = {
            let mut state = self.state.lock();
            let client = SocketAddr::new(self.ip, state.next_port(self.ip));
            state.open(client, server)
        };
        let stream = |end| SimStream::new(Arc::clone(&self.state), id, end);
        // If the listener was dropped, the dropped end closes the connection.
        drop(listener.send(stream(1)));
        Ok(stream(0))
    }

    /// Returns the address of this host for the loopback addresses.
    fn real_ip(&self, ip: IpAddr) -> IpAddr {
        if ip.is_loopback() { self.ip } else { ip }
    }
}

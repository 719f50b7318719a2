//! Where a peer is to be found.

use std::fmt;
use std::net::SocketAddr;

/// A host, not yet resolved, and a port: the key of a connection pool. Names are resolved anew for
/// every connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    host: String,
    port: u16,
}

impl PeerAddress {
    /// `host` is a name or an IP address; IPv6 with or without brackets.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// The host as it was given.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What a resolver takes: no brackets.
    pub(crate) fn unbracketed_host(&self) -> &str {
        self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&self.host)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unbracketed_host().contains(':') {
            write!(f, "[{}]:{}", self.unbracketed_host(), self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            // Without its scope a link-local address names no peer, or another one.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        Self::new(host, address.port())
    }
}

impl<H: Into<String>> From<(H, u16)> for PeerAddress {
    fn from((host, port): (H, u16)) -> Self {
        Self::new(host, port)
    }
}

//! [`PeerAddress`], the address of a peer before its name is resolved.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;

use crate::error::{ErrorKind, TransportError};

/// An unresolved host and a port; the key of the connection pool.
///
/// The host is resolved again for every connection. Every function that takes an address accepts a
/// `PeerAddress`, a [`SocketAddr`], a pair `(host, port)` or a text `"host:port"`; see
/// [`IntoPeerAddress`].
///
/// The host is kept in its canonical form, so that all spellings of one host are equal: names in
/// lower case, IP addresses in the form of [`IpAddr`] without brackets, and IPv4-mapped addresses
/// as IPv4.
///
/// ```
/// use std::net::SocketAddr;
///
/// use network_common::PeerAddress;
///
/// let address = PeerAddress::new("10.0.0.1", 7337);
/// assert_eq!(PeerAddress::from(SocketAddr::from(([10, 0, 0, 1], 7337))), address);
/// assert_eq!(PeerAddress::from(("10.0.0.1", 7337)), address);
/// assert_eq!("10.0.0.1:7337".parse::<PeerAddress>()?, address);
/// assert_eq!(address.to_string(), "10.0.0.1:7337");
/// assert_eq!(PeerAddress::new("[0:0::1]", 7337), PeerAddress::new("::1", 7337));
/// # Ok::<(), network_common::TransportError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress {
    host: String,
    port: u16,
}

impl PeerAddress {
    /// Returns the address of a host: a name, or an IP address with or without brackets.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self { host: canonical_host(host.into()), port }
    }

    /// Returns the host in its canonical form, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the socket address if the host is an IP address, which needs no resolver.
    pub(crate) fn as_socket_addr(&self) -> Option<SocketAddr> {
        if let Ok(ip) = self.host.parse::<IpAddr>() {
            return Some(SocketAddr::new(ip, self.port));
        }
        let (ip, zone) = self.host.split_once('%')?;
        let (ip, scope_id) = (ip.parse().ok()?, zone.parse().ok()?);
        Some(SocketAddrV6::new(ip, self.port, 0, scope_id).into())
    }

    /// Returns the name that the peer's certificate must contain.
    ///
    /// The scope of an IPv6 address has a meaning on this machine only.
    #[cfg(feature = "tls")]
    pub(crate) fn certificate_name(&self) -> &str {
        match self.host.split_once('%') {
            Some((ip, _)) if ip.parse::<Ipv6Addr>().is_ok() => ip,
            _ => &self.host,
        }
    }
}

/// Returns the one spelling of a host by which the pool finds it.
fn canonical_host(host: String) -> String {
    let unbracketed = unbracketed(&host);
    if let Ok(ip) = unbracketed.parse::<IpAddr>() {
        return ip.to_canonical().to_string();
    }
    if let Some((ip, zone)) = unbracketed.split_once('%')
        && let Ok(ip) = ip.parse::<Ipv6Addr>()
    {
        return format!("{ip}%{zone}");
    }
    host.to_ascii_lowercase()
}

/// Returns the address of an IPv4 peer of an IPv6 socket as an IPv4 address.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        let host = match address {
            // A link-local address without its scope is ambiguous.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
            _ => address.ip().to_string(),
        };
        Self::new(host, address.port())
    }
}

impl From<(&str, u16)> for PeerAddress {
    fn from((host, port): (&str, u16)) -> Self {
        Self::new(host, port)
    }
}

impl From<(String, u16)> for PeerAddress {
    fn from((host, port): (String, u16)) -> Self {
        Self::new(host, port)
    }
}

impl From<(IpAddr, u16)> for PeerAddress {
    fn from(address: (IpAddr, u16)) -> Self {
        SocketAddr::from(address).into()
    }
}

impl FromStr for PeerAddress {
    type Err = TransportError;

    /// Parses `host:port`; an IPv6 address must be in brackets.
    ///
    /// # Errors
    /// Kind [`InvalidAddress`](ErrorKind::InvalidAddress).
    fn from_str(text: &str) -> Result<Self, TransportError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let invalid_error = || {
            let message = format!("'{text}' is not an address of the form host:port");
            TransportError::new(ErrorKind::InvalidAddress, message)
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(invalid_error)?;
        let port = port
            .parse()
            .map_err(|error: std::num::ParseIntError| invalid_error().with_source(error))?;
        let name = unbracketed(host);
        if name.is_empty() || (name.len() == host.len() && name.contains(':')) {
            return Err(invalid_error());
        }
        Ok(Self::new(name, port))
    }
}

/// A type that [`TransportContext`] and [`TransportClientFactory`] accept as an address.
///
/// Implemented for everything that converts into a [`PeerAddress`], such as a [`SocketAddr`] or a
/// pair `(host, port)`, and for texts of the form `"host:port"`.
///
/// [`TransportContext`]: crate::TransportContext
/// [`TransportClientFactory`]: crate::TransportClientFactory
///
/// ```
/// use network_common::{IntoPeerAddress, PeerAddress};
///
/// assert_eq!("driver:7077".into_peer_address()?, PeerAddress::new("driver", 7077));
/// assert_eq!(("driver", 7077).into_peer_address()?, PeerAddress::new("driver", 7077));
/// # Ok::<(), network_common::TransportError>(())
/// ```
pub trait IntoPeerAddress {
    /// Converts the value into an address; does not resolve the host.
    ///
    /// # Errors
    /// Kind [`InvalidAddress`](ErrorKind::InvalidAddress).
    fn into_peer_address(self) -> Result<PeerAddress, TransportError>;
}

impl<T: Into<PeerAddress>> IntoPeerAddress for T {
    fn into_peer_address(self) -> Result<PeerAddress, TransportError> {
        Ok(self.into())
    }
}

impl IntoPeerAddress for &str {
    fn into_peer_address(self) -> Result<PeerAddress, TransportError> {
        self.parse()
    }
}

impl IntoPeerAddress for String {
    fn into_peer_address(self) -> Result<PeerAddress, TransportError> {
        self.parse()
    }
}

impl IntoPeerAddress for &String {
    fn into_peer_address(self) -> Result<PeerAddress, TransportError> {
        self.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_parses_to_host_and_port() {
        for (text, host, port) in [
            ("driver:7077", "driver", 7077),
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:80", "::1", 80),
            ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ] {
            assert_eq!(text.parse::<PeerAddress>().unwrap(), PeerAddress::new(host, port));
        }
    }

    #[test]
    fn text_without_host_port_or_brackets_is_invalid() {
        for text in ["", "driver", ":80", "[]:80", "driver:", "driver:65536", "::1:80"] {
            let error = text.parse::<PeerAddress>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidAddress, "{text}");
        }
    }
}

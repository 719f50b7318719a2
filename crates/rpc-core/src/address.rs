//! Addresses of environments and endpoints, with Spark's rules for their texts (`rpc 8`).

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{ErrorKind, RpcError};

/// Where an environment listens: a host and a port. Cheap to clone.
///
/// An IPv6 host is kept in its shortest form and in brackets: `::0:1` becomes `[::1]`. Two
/// addresses are equal if their texts are; no name is ever looked up.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RpcAddress(Arc<HostPort>);

/// Behind one pointer, as every message carries an address or two.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct HostPort {
    host: Box<str>,
    port: u16,
}

impl RpcAddress {
    /// The address of `host` (a name, an IPv4 address, or an IPv6 address with or without brackets)
    /// and `port`.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = match bare.parse::<Ipv6Addr>() {
            Ok(ip) => format!("[{ip}]").into(),
            Err(_) => host.into(),
        };
        Self(Arc::new(HostPort { host, port }))
    }

    /// The host; an IPv6 address is in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// The host as name resolution takes it.
    pub(crate) fn unbracketed_host(&self) -> &str {
        self.host()
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or_else(|| self.host())
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// `host:port`.
    #[must_use]
    pub fn host_port(&self) -> String {
        self.to_string()
    }

    /// `spark://host:port`.
    #[must_use]
    pub fn to_spark_url(&self) -> String {
        format!("spark://{self}")
    }

    /// Reads `spark://host:port`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] for anything else: another scheme, no port, a user, a path, a query,
    /// a fragment.
    pub fn from_spark_url(url: &str) -> Result<Self, RpcError> {
        let address = url.strip_prefix("spark://").and_then(|rest| parse_host_port(rest).ok());
        address.ok_or_else(|| {
            RpcError::new(ErrorKind::InvalidAddress, format!("Invalid master URL: {url}"))
        })
    }
}

impl fmt::Display for RpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host(), self.port())
    }
}

impl fmt::Debug for RpcAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RpcAddress({self})")
    }
}

impl From<std::net::SocketAddr> for RpcAddress {
    fn from(address: std::net::SocketAddr) -> Self {
        Self::new(&address.ip().to_string(), address.port())
    }
}

/// Reads `host:port`.
impl FromStr for RpcAddress {
    type Err = RpcError;

    fn from_str(text: &str) -> Result<Self, RpcError> {
        parse_host_port(text).map_err(|why| {
            RpcError::new(
                ErrorKind::InvalidAddress,
                format!("`{text:.200}` is not host:port, for example 127.0.0.1:7077: {why}"),
            )
        })
    }
}

fn parse_host_port(text: &str) -> Result<RpcAddress, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
    // u16's own parser takes a sign, which no address has.
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err("the port is not a number");
    }
    let port = port.parse().map_err(|_| "the port is not a number of 0 to 65535")?;
    match host.strip_prefix('[') {
        Some(rest) => {
            let ip = rest.strip_suffix(']').ok_or("the bracket is not closed")?;
            ip.parse::<Ipv6Addr>().map_err(|_| "the brackets do not hold an IPv6 address")?;
        }
        None => {
            if host.is_empty() {
                return Err("there is no host");
            }
            // As many as names of the domain name system have.
            if host.len() > 255 {
                return Err("the host is longer than 255 bytes");
            }
            if !host.chars().all(is_host_char) {
                return Err(
                    "the host has a character that hosts do not have; an IPv6 address needs brackets",
                );
            }
        }
    }
    Ok(RpcAddress::new(host, port))
}

/// Generous towards names with underscores, which container networks use, and international ones.
fn is_host_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '.' | '_')
}

/// The full address of an endpoint: its name, and where its environment listens, if it does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RpcEndpointAddress {
    address: Option<RpcAddress>,
    name: Arc<str>,
}

impl RpcEndpointAddress {
    /// The address of the endpoint `name` of the environment at `address`; `None`: one that does
    /// not listen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `name` is empty, longer than 65535 bytes, or has a character that
    /// the texts could not carry. Letters, digits and `-._~!$&'()*+,;=:%` are good.
    pub fn new(address: Option<RpcAddress>, name: &str) -> Result<Self, RpcError> {
        check_name(name)?;
        Ok(Self { address, name: name.into() })
    }

    /// Where the endpoint's environment listens.
    #[must_use]
    pub fn address(&self) -> Option<&RpcAddress> {
        self.address.as_ref()
    }

    /// The endpoint's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

/// The bytes that a name may have: as many as Spark's envelope carries (`rpc 6.1`).
const MAX_NAME: usize = 65_535;

fn check_name(name: &str) -> Result<(), RpcError> {
    if name.is_empty() {
        return Err(RpcError::new(ErrorKind::InvalidAddress, "RpcEndpoint name must be provided."));
    }
    if name.len() > MAX_NAME {
        let text = format!("the endpoint name `{name:.200}`... is longer than {MAX_NAME} bytes");
        return Err(RpcError::new(ErrorKind::InvalidAddress, text));
    }
    let good = |c: char| c.is_alphanumeric() || "-._~!$&'()*+,;=:%".contains(c);
    match name.chars().find(|c| !good(*c)) {
        Some(bad) => Err(RpcError::new(
            ErrorKind::InvalidAddress,
            format!(
                "the endpoint name `{name:.200}` contains {bad:?}, which spark://name@host:port cannot carry"
            ),
        )),
        None => Ok(()),
    }
}

/// `spark://name@host:port`, or `spark-client://name` of an environment that does not listen.
impl fmt::Display for RpcEndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "spark://{}@{address}", self.name),
            None => write!(f, "spark-client://{}", self.name),
        }
    }
}

/// Reads `spark://name@host:port`. The other form says nothing about where the endpoint is, and is
/// refused.
impl FromStr for RpcEndpointAddress {
    type Err = RpcError;

    fn from_str(text: &str) -> Result<Self, RpcError> {
        let parse = || {
            let (name, address) = text.strip_prefix("spark://")?.split_once('@')?;
            Self::new(Some(parse_host_port(address).ok()?), name).ok()
        };
        parse().ok_or_else(|| {
            RpcError::new(ErrorKind::InvalidAddress, format!("Invalid Spark URL: {text}"))
        })
    }
}

//! [`RpcAddress`] and [`RpcEndpointAddress`], with the text forms of the classes in Spark.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use network_common::PeerAddress;

use crate::error::{ErrorKind, RpcError};
use crate::peer_text::peer_name;

/// The host and port on which an environment listens.
///
/// Cloning is cheap. An IPv6 host is kept in its shortest form and in brackets: `::0:1` becomes
/// `[::1]`. Two addresses are equal if their texts are equal; names are not resolved.
///
/// ```
/// use rpc_core::RpcAddress;
///
/// let address = RpcAddress::new("10.0.0.1", 7077);
/// assert_eq!("10.0.0.1:7077".parse::<RpcAddress>()?, address);
/// assert_eq!(address.to_spark_url(), "spark://10.0.0.1:7077");
/// # Ok::<(), rpc_core::RpcError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RpcAddress(Arc<HostPort>);

/// Shared, because every message carries an address or two.
#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct HostPort {
    host: Box<str>,
    port: u16,
}

impl RpcAddress {
    /// Returns the address of a host and a port.
    ///
    /// `host` is a name, an IPv4 address, or an IPv6 address with or without brackets. All spellings
    /// of a host become one: a name is in lower case, and an IPv4 address is no IPv6 address.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        let peer = PeerAddress::new(host, port);
        let ip = peer.host().split('%').next().unwrap_or_default();
        let host = match ip.parse::<Ipv6Addr>() {
            Ok(_) => format!("[{}]", peer.host()).into(),
            Err(_) => peer.host().into(),
        };
        Self(Arc::new(HostPort { host, port }))
    }

    /// Returns the host; an IPv6 address is in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Returns the port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.0.port
    }

    /// Returns `host:port`, as `RpcAddress.hostPort` of Spark.
    #[must_use]
    pub fn host_port(&self) -> String {
        self.to_string()
    }

    /// Returns `spark://host:port`, as `RpcAddress.toSparkURL` of Spark.
    #[must_use]
    pub fn to_spark_url(&self) -> String {
        format!("spark://{self}")
    }

    /// Parses `spark://host:port`, as `RpcAddress.fromSparkURL` of Spark.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `url` has another scheme, no port, a user, a path, a query
    /// or a fragment.
    pub fn from_spark_url(url: &str) -> Result<Self, RpcError> {
        let address = url.strip_prefix("spark://").and_then(|rest| parse_host_port(rest).ok());
        address.ok_or_else(|| {
            RpcError::new(
                ErrorKind::InvalidAddress,
                format!("Invalid master URL: {}", peer_name(url)),
            )
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

/// Parses `host:port`; an IPv6 host must be in brackets.
impl FromStr for RpcAddress {
    type Err = RpcError;

    fn from_str(text: &str) -> Result<Self, RpcError> {
        parse_host_port(text).map_err(|why| {
            RpcError::new(
                ErrorKind::InvalidAddress,
                format!(
                    "`{}` is not host:port, for example 127.0.0.1:7077: {why}",
                    peer_name(text)
                ),
            )
        })
    }
}

/// A value that [`bind`], [`lookup`] and other functions accept as an address.
///
/// Implemented for [`RpcAddress`], [`SocketAddr`](std::net::SocketAddr), pairs `(host, port)` and
/// texts `"host:port"`. The host is checked, but not resolved.
///
/// [`bind`]: crate::RpcEnvBuilder::bind
/// [`lookup`]: crate::RpcEnv::lookup
///
/// ```
/// use rpc_core::{IntoRpcAddress, RpcAddress};
///
/// let address = RpcAddress::new("driver", 7077);
/// assert_eq!("driver:7077".into_rpc_address()?, address);
/// assert_eq!(("driver", 7077).into_rpc_address()?, address);
/// assert_eq!((&address).into_rpc_address()?, address);
/// # Ok::<(), rpc_core::RpcError>(())
/// ```
pub trait IntoRpcAddress {
    /// Converts the value into an address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if the host or the port is not valid.
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError>;
}

impl IntoRpcAddress for RpcAddress {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        Ok(self)
    }
}

impl IntoRpcAddress for &RpcAddress {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        Ok(self.clone())
    }
}

impl IntoRpcAddress for std::net::SocketAddr {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        Ok(self.into())
    }
}

impl IntoRpcAddress for &str {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        self.parse()
    }
}

impl IntoRpcAddress for String {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        self.parse()
    }
}

impl IntoRpcAddress for &String {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        self.parse()
    }
}

impl IntoRpcAddress for (&str, u16) {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        // Parsing checks the host.
        RpcAddress::new(self.0, self.1).to_string().parse()
    }
}

impl IntoRpcAddress for (String, u16) {
    fn into_rpc_address(self) -> Result<RpcAddress, RpcError> {
        (self.0.as_str(), self.1).into_rpc_address()
    }
}

fn parse_host_port(text: &str) -> Result<RpcAddress, &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
    // The parser of u16 accepts a sign, which an address must not have.
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
            // The longest name of the domain name system.
            if host.len() > 255 {
                return Err("the host is longer than 255 bytes");
            }
            if !host.chars().all(is_host_char) {
                return Err(
                    "the host has a character that is not allowed; an IPv6 address needs brackets",
                );
            }
        }
    }
    Ok(RpcAddress::new(host, port))
}

/// Accepts underscores, which container networks use, and letters of any script.
fn is_host_char(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '-' | '.' | '_')
}

/// The name of an endpoint and the address of its environment, if that listens.
///
/// ```
/// use rpc_core::{RpcAddress, RpcEndpointAddress};
///
/// let address = "spark://hello@10.0.0.1:7077".parse::<RpcEndpointAddress>()?;
/// assert_eq!(address.name(), "hello");
/// assert_eq!(address.address(), Some(&RpcAddress::new("10.0.0.1", 7077)));
/// # Ok::<(), rpc_core::RpcError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RpcEndpointAddress {
    address: Option<RpcAddress>,
    name: Arc<str>,
}

impl RpcEndpointAddress {
    /// Returns the address of the endpoint `name` in the environment at `address`.
    ///
    /// `address` is `None` for an environment that does not listen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidAddress`] if `name` is empty, longer than 65535 bytes, or contains other
    /// characters than letters, digits and `-._~!$&'()*+,;=:%`.
    pub fn new(address: Option<RpcAddress>, name: &str) -> Result<Self, RpcError> {
        check_name(name)?;
        Ok(Self { address, name: name.into() })
    }

    /// Returns the address of the environment; `None` if it does not listen.
    #[must_use]
    pub fn address(&self) -> Option<&RpcAddress> {
        self.address.as_ref()
    }

    /// Returns the name of the endpoint.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

/// The longest name in bytes: `RequestMessage` of Spark writes a length of two bytes.
const MAX_NAME: usize = 65_535;

fn check_name(name: &str) -> Result<(), RpcError> {
    if name.is_empty() {
        return Err(RpcError::new(ErrorKind::InvalidAddress, "RpcEndpoint name must be provided."));
    }
    if name.len() > MAX_NAME {
        let name = peer_name(name);
        let text = format!("the endpoint name `{name}` is longer than {MAX_NAME} bytes");
        return Err(RpcError::new(ErrorKind::InvalidAddress, text));
    }
    let good = |c: char| c.is_alphanumeric() || "-._~!$&'()*+,;=:%".contains(c);
    match name.chars().find(|c| !good(*c)) {
        Some(bad) => Err(RpcError::new(
            ErrorKind::InvalidAddress,
            format!(
                "the endpoint name `{}` contains {bad:?}, which is not allowed in \
                 spark://name@host:port",
                peer_name(name)
            ),
        )),
        None => Ok(()),
    }
}

/// Writes `spark://name@host:port`, or `spark-client://name` without an address.
impl fmt::Display for RpcEndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "spark://{}@{address}", self.name),
            None => write!(f, "spark-client://{}", self.name),
        }
    }
}

/// Parses `spark://name@host:port`.
///
/// `spark-client://name` is an error, because it does not contain the address of the endpoint.
impl FromStr for RpcEndpointAddress {
    type Err = RpcError;

    fn from_str(text: &str) -> Result<Self, RpcError> {
        let parse = || {
            let (name, address) = text.strip_prefix("spark://")?.split_once('@')?;
            Self::new(Some(parse_host_port(address).ok()?), name).ok()
        };
        parse().ok_or_else(|| {
            RpcError::new(
                ErrorKind::InvalidAddress,
                format!("Invalid Spark URL: {}", peer_name(text)),
            )
        })
    }
}

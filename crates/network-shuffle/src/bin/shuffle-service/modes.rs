//! [`Modes`]: how connections are protected.

use std::collections::HashMap;
use std::fmt;

use network_common::TransportConf;

/// Describes to the operator how connections are protected.
pub(crate) struct Modes {
    authentication: String,
    tls: bool,
}

impl Modes {
    pub(crate) fn new(settings: &[(String, String)], transport: &TransportConf) -> Self {
        let last: HashMap<&str, &str> =
            settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let is_set = |key| last.get(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let authentication = if !transport.authenticate() {
            "off (spark.authenticate): every peer can read every block".to_owned()
        } else if is_set("spark.network.crypto.enabled") {
            let cipher = last.get("spark.network.crypto.cipher").unwrap_or(&"AES/CTR/NoPadding");
            format!("auth engine, encrypted with {cipher}")
        } else if is_set("spark.network.sasl.serverAlwaysEncrypt") {
            "SASL, encrypted".to_owned()
        } else {
            "SASL, encrypted if the executor requests it".to_owned()
        };
        Self { authentication, tls: transport.tls().enabled() }
    }
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.tls { "on" } else { "off (spark.ssl.rpc.enabled)" };
        write!(f, "authentication: {}\nTLS: {tls}", self.authentication)
    }
}

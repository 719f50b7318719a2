//! SASL's DIGEST-MD5 (RFC 2831) as Java and Spark use it.
//!
//! [`DigestServer`] and [`DigestClient`] correspond to Spark's `SparkSaslServer` and
//! `SparkSaslClient`; they process tokens without I/O. Four tokens make a handshake: an empty one
//! of the client, the server's challenge, the client's response and the server's `rspauth`.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::crypto::fill_random;
use super::directives::{self, Directives};
use super::{AuthError, Secret};

const REALM: &str = "default";
const URI: &str = "null/default";
const NONCE_COUNT: &str = "00000001";
/// The first part of A2 in the client's response (RFC 2831, section 2.1.2.1).
const RESPONSE_METHOD: &str = "AUTHENTICATE";
/// The first part of A2 in the server's `rspauth` (RFC 2831, section 2.1.3).
const RSPAUTH_METHOD: &str = "";

/// The protection of a connection after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    None,
    Encryption(SaslCipher),
}

/// The ciphers of `auth-conf` that this crate implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaslCipher {
    TripleDes,
    Rc4,
}

impl SaslCipher {
    /// All ciphers; a client prefers the first.
    const ALL: [Self; 2] = [Self::TripleDes, Self::Rc4];

    fn name(self) -> &'static str {
        match self {
            Self::TripleDes => "3des",
            Self::Rc4 => "rc4",
        }
    }

    /// Returns the cipher that a client chose.
    fn from_name(name: &str) -> Result<Self, AuthError> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name).ok_or_else(|| {
            AuthError::NegotiationFailed(format!(
                "the client chose cipher {name:?}, which was not offered"
            ))
        })
    }

    /// Returns the preferred cipher among those that a server offers.
    fn choose(offered: &str) -> Result<Self, AuthError> {
        Self::ALL
            .into_iter()
            .find(|cipher| directives::list_contains(offered, cipher.name()))
            .ok_or_else(|| {
                AuthError::NegotiationFailed(format!(
                    "no common cipher: the server offers {offered}, this side supports 3des and rc4"
                ))
            })
    }
}

/// The quality of protection that a server offers or a client requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qop {
    /// `auth`: authentication without encryption.
    Plain,
    /// `auth-conf`: authentication with encryption.
    Encrypted,
    /// A server offers both, and the client chooses.
    Either,
}

/// The result of a handshake.
pub(super) struct NegotiatedQop {
    pub(super) protection: Protection,
    /// H(A1) of the RFC, from which the encryption keys are derived.
    #[cfg_attr(not(any(test, feature = "legacy-auth")), expect(dead_code))]
    pub(super) hash: Zeroizing<[u8; 16]>,
}

/// User name and password in the encoding that Spark passes to SASL.
pub(super) struct Credentials {
    user: String,
    password: Zeroizing<String>,
}

impl Credentials {
    pub(super) fn new(user: &str, secret: &Secret) -> Self {
        let user = encode_base64_lines(user.as_bytes()).to_string();
        Self { user, password: encode_base64_lines(secret.bytes()) }
    }
}

/// Encodes bytes in Base64 with a line break between lines of 76 characters.
///
/// Spark's `SparkSaslServer.encodeIdentifier` uses Netty's encoder, which breaks lines.
fn encode_base64_lines(bytes: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(STANDARD.encode(bytes));
    let mut lines = Zeroizing::new(String::with_capacity(encoded.len() + encoded.len() / 76));
    for (index, character) in encoded.chars().enumerate() {
        if index > 0 && index % 76 == 0 {
            lines.push('\n');
        }
        lines.push(character);
    }
    lines
}

/// The values that both sides hash.
struct Exchange<'a> {
    credentials: &'a Credentials,
    realm: &'a str,
    nonce: &'a str,
    client_nonce: &'a str,
    qop: &'a str,
}

impl Exchange<'_> {
    /// Returns H(A1) of the RFC.
    fn hash(&self) -> Zeroizing<[u8; 16]> {
        let Credentials { user, password } = self.credentials;
        let inner = md5(&[user.as_bytes(), b":", self.realm.as_bytes(), b":", password.as_bytes()]);
        md5(&[&*inner, b":", self.nonce.as_bytes(), b":", self.client_nonce.as_bytes()])
    }

    /// Returns the hexadecimal proof for one direction.
    fn proof(&self, method: &str) -> String {
        let suffix = if self.qop == "auth" { "" } else { ":00000000000000000000000000000000" };
        let a1_hash = Zeroizing::new(hex(&*self.hash()));
        let a2_hash = hex(&*md5(&[format!("{method}:{URI}{suffix}").as_bytes()]));
        let fields = [&a1_hash, self.nonce, NONCE_COUNT, self.client_nonce, self.qop, &a2_hash];
        let joined = Zeroizing::new(fields.join(":"));
        hex(&*md5(&[joined.as_bytes()]))
    }

    fn negotiated_qop(&self, cipher: Option<SaslCipher>) -> NegotiatedQop {
        let protection = cipher.map_or(Protection::None, Protection::Encryption);
        NegotiatedQop { protection, hash: self.hash() }
    }
}

/// The server end of one handshake.
pub(super) struct DigestServer {
    credentials: Credentials,
    qop: Qop,
    nonce: String,
}

impl DigestServer {
    pub(super) fn new(credentials: Credentials, qop: Qop) -> Result<Self, AuthError> {
        Ok(Self { credentials, qop, nonce: random_nonce()? })
    }

    /// Returns the challenge, which is the server's first token.
    pub(super) fn challenge(&self) -> Vec<u8> {
        let (qops, ciphers) = match self.qop {
            Qop::Plain => ("auth", ""),
            Qop::Encrypted => ("auth-conf", ",cipher=\"3des,rc4\""),
            Qop::Either => ("auth-conf,auth", ",cipher=\"3des,rc4\""),
        };
        let nonce = &self.nonce;
        format!(
            "realm=\"{REALM}\",nonce=\"{nonce}\",qop=\"{qops}\",charset=utf-8{ciphers},\
             algorithm=md5-sess"
        )
        .into_bytes()
    }

    /// Verifies the client's response; returns the `rspauth` token and the result.
    pub(super) fn verify(&self, response: &[u8]) -> Result<(Vec<u8>, NegotiatedQop), AuthError> {
        let response = Directives::parse(response)?;
        for (name, expected) in
            [("realm", REALM), ("nonce", &self.nonce), ("nc", NONCE_COUNT), ("digest-uri", URI)]
        {
            if response.require(name)? != expected {
                return Err(AuthError::Malformed(format!(
                    "the client's response has another {name} than expected"
                )));
            }
        }
        let qop = response.require("qop")?;
        let cipher = match (qop, self.qop) {
            ("auth", Qop::Plain | Qop::Either) => None,
            ("auth-conf", Qop::Encrypted | Qop::Either) => {
                Some(SaslCipher::from_name(response.require("cipher")?)?)
            }
            _ => {
                return Err(AuthError::NegotiationFailed(format!(
                    "the client chose qop {qop:?}, which was not offered"
                )));
            }
        };
        let exchange = Exchange {
            credentials: &self.credentials,
            realm: REALM,
            nonce: &self.nonce,
            client_nonce: response.require("cnonce")?,
            qop,
        };
        let user = response.require("username")?.as_bytes();
        let is_same_user = verify_slices_are_equal(user, self.credentials.user.as_bytes()).is_ok();
        verify_proof(response.require("response")?, &exchange.proof(RESPONSE_METHOD))?;
        if !is_same_user {
            return Err(AuthError::VerificationFailed("the client has another SASL user name"));
        }
        let rspauth = format!("rspauth={}", exchange.proof(RSPAUTH_METHOD)).into_bytes();
        Ok((rspauth, exchange.negotiated_qop(cipher)))
    }
}

/// The client end of one handshake, before it has the server's challenge.
pub(super) struct DigestClient {
    credentials: Credentials,
    qop: Qop,
    client_nonce: String,
}

/// The client end of one handshake, after it has sent its response.
pub(super) struct AwaitingRspAuth {
    expected_proof: String,
    negotiated: NegotiatedQop,
}

impl DigestClient {
    pub(super) fn new(credentials: Credentials, qop: Qop) -> Result<Self, AuthError> {
        Ok(Self { credentials, qop, client_nonce: random_nonce()? })
    }

    /// Returns the response to the server's challenge, and the next state.
    pub(super) fn respond(
        &self,
        challenge: &[u8],
    ) -> Result<(Vec<u8>, AwaitingRspAuth), AuthError> {
        let challenge = Directives::parse(challenge)?;
        let algorithm = challenge.require("algorithm")?;
        if algorithm != "md5-sess" {
            return Err(AuthError::NegotiationFailed(format!(
                "the server uses the algorithm {algorithm:?}, expected was md5-sess"
            )));
        }
        let qop = if self.qop == Qop::Plain { "auth" } else { "auth-conf" };
        let offered = challenge.get("qop").unwrap_or("auth");
        if !directives::list_contains(offered, qop) {
            return Err(AuthError::NegotiationFailed(format!(
                "no common protection layer: this side requires qop {qop}, the server offers \
                 {offered} \
                 (spark.authenticate.enableSaslEncryption, \
                 spark.network.sasl.serverAlwaysEncrypt)"
            )));
        }
        let cipher = match self.qop {
            Qop::Plain => None,
            _ => Some(SaslCipher::choose(challenge.require("cipher")?)?),
        };
        let (realm, nonce) =
            (challenge.get("realm").unwrap_or_default(), challenge.require("nonce")?);
        let exchange = Exchange {
            credentials: &self.credentials,
            realm,
            nonce,
            client_nonce: &self.client_nonce,
            qop,
        };
        let mut response = format!(
            "charset=utf-8,username={},realm={},nonce={},nc={NONCE_COUNT},cnonce={},\
             digest-uri=\"{URI}\",maxbuf=65536,response={},qop={qop}",
            directives::quote(&self.credentials.user),
            directives::quote(realm),
            directives::quote(nonce),
            directives::quote(&self.client_nonce),
            exchange.proof(RESPONSE_METHOD),
        );
        if let Some(cipher) = cipher {
            response.push_str(&format!(",cipher=\"{}\"", cipher.name()));
        }
        let awaiting_rspauth = AwaitingRspAuth {
            expected_proof: exchange.proof(RSPAUTH_METHOD),
            negotiated: exchange.negotiated_qop(cipher),
        };
        Ok((response.into_bytes(), awaiting_rspauth))
    }
}

impl AwaitingRspAuth {
    /// Verifies the server's `rspauth` token and returns the result.
    pub(super) fn finish(self, token: &[u8]) -> Result<NegotiatedQop, AuthError> {
        let token = Directives::parse(token)?;
        verify_proof(token.require("rspauth")?, &self.expected_proof)?;
        Ok(self.negotiated)
    }
}

fn verify_proof(proof: &str, expected: &str) -> Result<(), AuthError> {
    verify_slices_are_equal(proof.as_bytes(), expected.as_bytes())
        .map_err(|_| AuthError::mismatched_secret())
}

fn random_nonce() -> Result<String, AuthError> {
    let mut bytes = [0; 30];
    fill_random(&mut bytes)?;
    Ok(STANDARD.encode(bytes))
}

fn md5(parts: &[&[u8]]) -> Zeroizing<[u8; 16]> {
    let mut hash = Md5::new();
    parts.iter().for_each(|part| hash.update(part));
    Zeroizing::new(hash.finalize().into())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[path = "digest_md5_tests.rs"]
mod tests;

//! SASL's DIGEST-MD5 (RFC 2831) as Java and Spark use it (auth 1.3).

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use zeroize::Zeroizing;

use super::directives::{self, Directives};
use super::engine::random;
use super::{AuthError, Secret};

const REALM: &str = "default";
const URI: &str = "null/default";
const COUNT: &str = "00000001";
/// The first half of what is hashed for a response, and for the server's answer to it.
const RESPONSE: &str = "AUTHENTICATE";
const ANSWER: &str = "";

/// What protects the bytes after the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    None,
    Encryption(SaslCipher),
}

/// Ciphers of `auth-conf`, the better one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SaslCipher {
    TripleDes,
    Rc4,
}

impl SaslCipher {
    const ALL: [Self; 2] = [Self::TripleDes, Self::Rc4];

    fn name(self) -> &'static str {
        match self {
            Self::TripleDes => "3des",
            Self::Rc4 => "rc4",
        }
    }
}

/// What a server offers and a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Qop {
    Plain,
    Encrypted,
    /// Only for servers: the client chooses.
    Either,
}

/// The outcome of a handshake. `hash` is H(A1), from which keys are derived.
pub(super) struct NegotiatedQop {
    pub(super) protection: Protection,
    #[cfg_attr(not(any(test, feature = "legacy-auth")), expect(dead_code))]
    pub(super) hash: Zeroizing<[u8; 16]>,
}

/// User and password in the form in which Spark hands them to SASL.
pub(super) struct Credentials {
    user: String,
    password: Zeroizing<String>,
}

impl Credentials {
    pub(super) fn new(user: &str, secret: &Secret) -> Self {
        Self { user: wrapped(user.as_bytes()).to_string(), password: wrapped(secret.bytes()) }
    }
}

/// Base64 with a line break after every 76 characters but the last ones.
fn wrapped(bytes: &[u8]) -> Zeroizing<String> {
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
    quality: &'a str,
}

impl Exchange<'_> {
    fn hash(&self) -> Zeroizing<[u8; 16]> {
        let Credentials { user, password } = self.credentials;
        let inner = md5(&[user.as_bytes(), b":", self.realm.as_bytes(), b":", password.as_bytes()]);
        md5(&[&*inner, b":", self.nonce.as_bytes(), b":", self.client_nonce.as_bytes()])
    }

    /// The proof for one direction, in hex.
    fn proof(&self, direction: &str) -> String {
        let suffix = if self.quality == "auth" { "" } else { ":00000000000000000000000000000000" };
        let first = Zeroizing::new(hex(&*self.hash()));
        let second = hex(&*md5(&[format!("{direction}:{URI}{suffix}").as_bytes()]));
        let parts = [&first, self.nonce, COUNT, self.client_nonce, self.quality, &second];
        let all = Zeroizing::new(parts.join(":"));
        hex(&*md5(&[all.as_bytes()]))
    }

    fn agreed(&self, cipher: Option<SaslCipher>) -> NegotiatedQop {
        let protection = cipher.map_or(Protection::None, Protection::Encryption);
        NegotiatedQop { protection, hash: self.hash() }
    }
}

/// The server's end of one handshake.
pub(super) struct DigestServer {
    credentials: Credentials,
    quality: Qop,
    nonce: String,
}

impl DigestServer {
    pub(super) fn new(credentials: Credentials, quality: Qop) -> Result<Self, AuthError> {
        Ok(Self { credentials, quality, nonce: nonce()? })
    }

    /// The first token.
    pub(super) fn challenge(&self) -> Vec<u8> {
        let (qualities, ciphers) = match self.quality {
            Qop::Plain => ("auth", ""),
            Qop::Encrypted => ("auth-conf", ",cipher=\"3des,rc4\""),
            Qop::Either => ("auth-conf,auth", ",cipher=\"3des,rc4\""),
        };
        let nonce = &self.nonce;
        format!("realm=\"{REALM}\",nonce=\"{nonce}\",qop=\"{qualities}\",charset=utf-8{ciphers},algorithm=md5-sess")
            .into_bytes()
    }

    /// Checks the client's proof; the token that proves this side, and what was agreed.
    pub(super) fn verify(&self, response: &[u8]) -> Result<(Vec<u8>, NegotiatedQop), AuthError> {
        let response = Directives::parse(response)?;
        for (name, expected) in
            [("realm", REALM), ("nonce", &self.nonce), ("nc", COUNT), ("digest-uri", URI)]
        {
            if response.required(name)? != expected {
                return Err(AuthError::Malformed(format!(
                    "the response's {name} is not what it must be"
                )));
            }
        }
        let quality = response.required("qop")?;
        let cipher = match (quality, self.quality) {
            ("auth", Qop::Plain | Qop::Either) => None,
            ("auth-conf", Qop::Encrypted | Qop::Either) => {
                Some(cipher(response.required("cipher")?)?)
            }
            _ => {
                return Err(AuthError::NegotiationFailed(format!(
                    "the client chose qop {quality:?}, which was not offered"
                )));
            }
        };
        let exchange = Exchange {
            credentials: &self.credentials,
            realm: REALM,
            nonce: &self.nonce,
            client_nonce: response.required("cnonce")?,
            quality,
        };
        let user = response.required("username")?.as_bytes();
        let known = verify_slices_are_equal(user, self.credentials.user.as_bytes()).is_ok();
        check(response.required("response")?, &exchange.proof(RESPONSE))?;
        if !known {
            return Err(AuthError::VerificationFailed("the client has another user name"));
        }
        let answer = format!("rspauth={}", exchange.proof(ANSWER)).into_bytes();
        Ok((answer, exchange.agreed(cipher)))
    }
}

/// The client's end of one handshake.
pub(super) struct DigestClient {
    credentials: Credentials,
    quality: Qop,
    client_nonce: String,
}

/// What a client keeps while its response is under way.
pub(super) struct AwaitingRspAuth {
    answer: String,
    agreed: NegotiatedQop,
}

impl DigestClient {
    pub(super) fn new(credentials: Credentials, quality: Qop) -> Result<Self, AuthError> {
        Ok(Self { credentials, quality, client_nonce: nonce()? })
    }

    /// Answers the server's challenge.
    pub(super) fn respond(
        &self,
        challenge: &[u8],
    ) -> Result<(Vec<u8>, AwaitingRspAuth), AuthError> {
        let challenge = Directives::parse(challenge)?;
        if challenge.required("algorithm")? != "md5-sess" {
            return Err(AuthError::NegotiationFailed(
                "the server's algorithm is not md5-sess".to_owned(),
            ));
        }
        let quality = if self.quality == Qop::Plain { "auth" } else { "auth-conf" };
        let offered = challenge.get("qop").unwrap_or("auth");
        if !directives::items(offered).any(|item| item == quality) {
            return Err(AuthError::NegotiationFailed(format!(
                "no common protection layer: this side wants {quality}, the server offers {offered}"
            )));
        }
        let cipher = match self.quality {
            Qop::Plain => None,
            _ => Some(best_cipher(challenge.required("cipher")?)?),
        };
        let (realm, nonce) =
            (challenge.get("realm").unwrap_or_default(), challenge.required("nonce")?);
        let exchange = Exchange {
            credentials: &self.credentials,
            realm,
            nonce,
            client_nonce: &self.client_nonce,
            quality,
        };
        let mut response = format!(
            "charset=utf-8,username={},realm={},nonce={},nc={COUNT},cnonce={},digest-uri=\"{URI}\",maxbuf=65536,\
             response={},qop={quality}",
            directives::quoted(&self.credentials.user),
            directives::quoted(realm),
            directives::quoted(nonce),
            directives::quoted(&self.client_nonce),
            exchange.proof(RESPONSE),
        );
        if let Some(cipher) = cipher {
            response.push_str(&format!(",cipher=\"{}\"", cipher.name()));
        }
        let responded =
            AwaitingRspAuth { answer: exchange.proof(ANSWER), agreed: exchange.agreed(cipher) };
        Ok((response.into_bytes(), responded))
    }
}

impl AwaitingRspAuth {
    /// Checks that the server knows the secret too.
    pub(super) fn finish(self, answer: &[u8]) -> Result<NegotiatedQop, AuthError> {
        let answer = Directives::parse(answer)?;
        check(answer.required("rspauth")?, &self.answer)?;
        Ok(self.agreed)
    }
}

fn check(proof: &str, expected: &str) -> Result<(), AuthError> {
    verify_slices_are_equal(proof.as_bytes(), expected.as_bytes()).map_err(|_| {
        AuthError::VerificationFailed("the peer has another secret, or the message was changed")
    })
}

fn cipher(name: &str) -> Result<SaslCipher, AuthError> {
    let known = SaslCipher::ALL.into_iter().find(|cipher| cipher.name() == name);
    known.ok_or_else(|| {
        AuthError::NegotiationFailed(format!(
            "the client chose cipher {name:?}, which was not offered"
        ))
    })
}

fn best_cipher(offered: &str) -> Result<SaslCipher, AuthError> {
    let common = SaslCipher::ALL
        .into_iter()
        .find(|cipher| directives::items(offered).any(|item| item == cipher.name()));
    common.ok_or_else(|| {
        AuthError::NegotiationFailed(format!("no common cipher: the server offers {offered}"))
    })
}

fn nonce() -> Result<String, AuthError> {
    let mut bytes = [0; 30];
    random(&mut bytes)?;
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

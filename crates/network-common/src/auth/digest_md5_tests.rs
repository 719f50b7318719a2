//! DIGEST-MD5 between our client and server, and against a recorded exchange with Spark.

use super::*;
use crate::auth::test_support::one_bit_flips;

const NONCE: &str = "CYi97PqCTT6NYtoajOx9Up5YlDERgjLy/OJSkJu9";
const CLIENT_NONCE: &str = "QFvZYIUw4dj7F26DUQJZvVjRXGjmIIbXj4PpJWAi";

fn credentials(secret: &str) -> Credentials {
    Credentials::new("sparkSaslUser", &Secret::new(secret))
}

fn server(secret: &str, qop: Qop) -> DigestServer {
    DigestServer::new(credentials(secret), qop).unwrap()
}

fn client(secret: &str, qop: Qop) -> DigestClient {
    DigestClient::new(credentials(secret), qop).unwrap()
}

#[test]
fn recorded_exchange_is_reproduced() {
    let server =
        DigestServer { credentials: credentials("secret"), qop: Qop::Either, nonce: NONCE.into() };
    let client = DigestClient {
        credentials: credentials("secret"),
        qop: Qop::Plain,
        client_nonce: CLIENT_NONCE.into(),
    };
    let challenge = format!(
        "realm=\"default\",nonce=\"{NONCE}\",qop=\"auth-conf,auth\",charset=utf-8,\
         cipher=\"3des,rc4,des,rc4-56,rc4-40\",algorithm=md5-sess"
    );
    let (response, responded) = client.respond(challenge.as_bytes()).unwrap();
    assert_eq!(
        String::from_utf8(response.clone()).unwrap(),
        format!(
            "charset=utf-8,username=\"c3BhcmtTYXNsVXNlcg==\",realm=\"default\",nonce=\"{NONCE}\",nc=00000001,\
             cnonce=\"{CLIENT_NONCE}\",digest-uri=\"null/default\",maxbuf=65536,\
             response=cf769a52fe0a94017a1a1fba58533ad9,qop=auth"
        )
    );
    let (answer, agreed) = server.verify(&response).unwrap();
    assert_eq!(answer, b"rspauth=ca41320d1684de33f9cce24e45f89262");
    assert_eq!(agreed.protection, Protection::None);
    responded.finish(&answer).unwrap();
}

#[test]
fn challenge_has_sparks_format() {
    let server =
        DigestServer { credentials: credentials("secret"), qop: Qop::Plain, nonce: NONCE.into() };
    assert_eq!(
        server.challenge(),
        format!(
            "realm=\"default\",nonce=\"{NONCE}\",qop=\"auth\",charset=utf-8,algorithm=md5-sess"
        )
        .as_bytes()
    );
}

/// The encoding of secrets that Spark generates is longer than one line.
#[test]
fn long_secrets_are_encoded_with_line_breaks() {
    let encoded = encode_base64_lines("0123456789abcdef".repeat(4).as_bytes());
    assert_eq!((encoded.len(), encoded.find('\n')), (88 + 1, Some(76)));
    // A line that is exactly full has no line break behind it.
    assert_eq!(encode_base64_lines(&[b'x'; 57]).find('\n'), None);
    assert_eq!(encode_base64_lines(&[b'x'; 57]).len(), 76);
    assert_eq!(encode_base64_lines(&[b'x'; 171]).matches('\n').count(), 2);
    let user =
        "a user name that is so long that its encoding does not fit into one line either".repeat(2);
    let credentials = || Credentials::new(&user, &Secret::new("s".repeat(200)));
    let server = DigestServer::new(credentials(), Qop::Plain).unwrap();
    let client = DigestClient::new(credentials(), Qop::Plain).unwrap();
    let (response, responded) = client.respond(&server.challenge()).unwrap();
    responded.finish(&server.verify(&response).unwrap().0).unwrap();
}

#[test]
fn sasl_01_matching_secrets_succeed() {
    use Qop::{Either, Encrypted, Plain};
    let encryption = Protection::Encryption(SaslCipher::TripleDes);
    for (offered, wanted, agreed) in [
        (Plain, Plain, Protection::None),
        (Either, Plain, Protection::None),
        (Either, Encrypted, encryption),
        (Encrypted, Encrypted, encryption),
    ] {
        let (server, client) = (server("secret", offered), client("secret", wanted));
        let (response, responded) = client.respond(&server.challenge()).unwrap();
        let (answer, at_server) = server.verify(&response).unwrap();
        let at_client = responded.finish(&answer).unwrap();
        assert_eq!((at_server.protection, at_client.protection), (agreed, agreed));
        assert_eq!(at_server.hash, at_client.hash);
    }
}

#[test]
fn sasl_02_different_secrets_fail() {
    let (server, client) = (server("one", Qop::Plain), client("two", Qop::Plain));
    let (response, _) = client.respond(&server.challenge()).unwrap();
    let error = server.verify(&response).err().unwrap();
    assert!(error.to_string().contains("verification failed"), "{error}");
}

#[test]
fn client_verifies_server() {
    let (server, client) = (server("secret", Qop::Plain), client("secret", Qop::Plain));
    for answer in [&b"rspauth=00000000000000000000000000000000"[..], b"", b"rspauth=", b"ok"] {
        let (_, responded) = client.respond(&server.challenge()).unwrap();
        assert!(responded.finish(answer).is_err());
    }
}

#[test]
fn sasl_08_server_requires_encryption() {
    let (server, client) = (server("secret", Qop::Encrypted), client("secret", Qop::Plain));
    let error = client.respond(&server.challenge()).err().unwrap();
    assert!(error.to_string().contains("no common protection layer"), "{error}");
    // A client that responds without encryption nevertheless.
    let lenient = String::from_utf8(server.challenge()).unwrap().replace("auth-conf", "auth");
    let (response, _) = client.respond(lenient.as_bytes()).unwrap();
    assert!(matches!(server.verify(&response), Err(AuthError::NegotiationFailed(_))));
}

/// A proxy that removes encryption, or the better cipher, from the offer.
#[test]
fn downgrades_are_rejected() {
    let (server, client) = (server("secret", Qop::Either), client("secret", Qop::Encrypted));
    let offer = String::from_utf8(server.challenge()).unwrap();
    assert!(client.respond(offer.replace("auth-conf,auth", "auth").as_bytes()).is_err());
    assert!(client.respond(offer.replace("3des,rc4", "none").as_bytes()).is_err());
    let (response, _) = client.respond(offer.as_bytes()).unwrap();
    let response = String::from_utf8(response).unwrap();
    assert!(server.verify(response.replace("qop=auth-conf", "qop=auth").as_bytes()).is_err());
    assert!(server.verify(response.replace("3des", "rc4-40").as_bytes()).is_err());
}

#[test]
fn damaged_tokens_are_rejected() {
    let (server, client) = (server("secret", Qop::Plain), client("secret", Qop::Plain));
    let (response, _) = client.respond(&server.challenge()).unwrap();
    // The case of names and the client's buffer size are not hashed, so not protected.
    let meaning = |token: &[u8]| {
        let token = Directives::parse(token).ok()?;
        let fields =
            ["username", "realm", "nonce", "nc", "cnonce", "digest-uri", "response", "qop"];
        Some(fields.map(|name| token.get(name).map(str::to_owned)))
    };
    let mut refused = 0;
    for damaged in one_bit_flips(&response) {
        if meaning(&damaged) != meaning(&response) && server.verify(&damaged).is_err() {
            refused += 1;
        } else {
            assert_eq!(
                meaning(&damaged),
                meaning(&response),
                "{:?}",
                String::from_utf8_lossy(&damaged)
            );
        }
    }
    assert!(refused > response.len() * 6, "{refused} of {}", response.len() * 8);
    for end in 0..response.len() {
        assert!(server.verify(&response[..end]).is_err(), "cut at {end}");
    }
    let (answer, _) = server.verify(&response).unwrap();
    for damaged in one_bit_flips(&answer["rspauth=".len()..]) {
        let (_, responded) = client.respond(&server.challenge()).unwrap();
        assert!(responded.finish(&[b"rspauth=", &damaged[..]].concat()).is_err());
    }
}

#[test]
fn response_is_valid_only_for_its_own_challenge() {
    let (one, two) = (server("secret", Qop::Plain), server("secret", Qop::Plain));
    let (response, _) = client("secret", Qop::Plain).respond(&one.challenge()).unwrap();
    assert!(two.verify(&response).is_err());
}

//! The key exchange of Spark before 3.2.

use super::*;
use crate::auth::session_keys::Side;
use crate::auth::test_support::{hex, one_bit_flips};
use crate::conf::{CipherName, TransportConf};

fn conf() -> AuthConf {
    // Fewer iterations than the default, because these tests derive many keys.
    let conf =
        TransportConf::from_settings("rpc", [("spark.network.crypto.keyFactoryIterations", "2")])
            .unwrap();
    conf.auth().clone()
}

fn secret() -> Secret {
    Secret::new("secret")
}

#[test]
fn incremented_numbers_match_java() {
    for (number, sum) in [
        ("00", "01"),
        ("7f", "0080"),
        ("ff", "00"),
        ("80", "81"),
        ("00ff", "0100"),
        ("ffff", "00"),
        ("7fff", "008000"),
        ("8000", "8001"),
        ("ff7f", "80"),
        ("fe80", "fe81"),
        ("000001", "02"),
        ("ffffff01", "ff02"),
    ] {
        let bytes = crate::auth::test_support::unhex(number);
        assert_eq!(hex(&increment(&bytes)), sum, "{number}");
    }
}

#[test]
fn both_ends_derive_same_keys() {
    let (conf, secret) = (conf(), secret());
    // Repeated, so that challenges of either sign occur.
    for _ in 0..20 {
        let client = LegacyClientHandshake::new("appId", &secret, &conf).unwrap();
        let message = LegacyMessage::decode(&client.message_bytes()).unwrap();
        assert_eq!(message.app_id, "appId");
        let (reply, at_server) = respond(&message, &secret, &conf).unwrap();
        let at_client = client.finish(&reply).unwrap();
        let mut client = at_client.filters(CipherName::AesCtr, Side::Client).unwrap();
        let mut server = at_server.filters(CipherName::AesCtr, Side::Server).unwrap();
        for (seal, open) in [
            (&mut client.seal_filter, &mut server.open_filter),
            (&mut server.seal_filter, &mut client.open_filter),
        ] {
            let (mut sealed, mut opened) = (Vec::new(), Vec::new());
            sealed.extend(seal.transform_to_vec(b"hello").unwrap());
            opened.extend(open.transform_to_vec(&sealed).unwrap());
            assert_eq!(opened, b"hello");
        }
    }
}

#[test]
fn ae_14_changed_messages_are_rejected() {
    let (conf, secret) = (conf(), secret());
    let challenge = LegacyClientHandshake::new("appId", &secret, &conf).unwrap().message_bytes();
    let answer = |bytes: &[u8]| {
        LegacyMessage::decode(bytes).and_then(|message| respond(&message, &secret, &conf))
    };
    // The random number is not protected in the challenge, but its echo is checked.
    let unprotected = challenge.len() - 16;
    for damaged in one_bit_flips(&challenge[..unprotected]) {
        assert!(answer(&[&damaged, &challenge[unprotected..]].concat()).is_err());
    }
    for end in 0..challenge.len() {
        assert!(answer(&challenge[..end]).is_err());
    }
    let another = LegacyMessage::decode(&challenge)
        .and_then(|message| respond(&message, &Secret::new("other"), &conf));
    assert!(matches!(another, Err(AuthError::VerificationFailed(_))));

    let client = || LegacyClientHandshake::new("appId", &secret, &conf).unwrap();
    let reply = |client: &LegacyClientHandshake<'_>| answer(&client.message_bytes()).unwrap().0;
    let proof = 1 + 4 + reply(&client()).len() - 1 - 4 - 3 * (4 + 16);
    for bit in 0..8 * proof {
        let client = client();
        let mut damaged = reply(&client);
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(client.finish(&damaged).is_err(), "bit {bit}");
    }
    let (one, two) = (client(), client());
    assert!(two.finish(&reply(&one)).is_err(), "the response to another challenge");
    let cut = client();
    let answer = reply(&cut);
    assert!(cut.finish(&answer[..answer.len() - 1]).is_err());
}

/// The client does not determine the server's computing time.
#[test]
fn other_parameters_are_rejected() {
    let (conf, secret) = (conf(), secret());
    let message = || {
        LegacyMessage::decode(
            &LegacyClientHandshake::new("appId", &secret, &conf).unwrap().message_bytes(),
        )
        .unwrap()
    };
    let asking = [
        LegacyMessage { iterations: i32::MAX, ..message() },
        LegacyMessage { key_bits: 256, ..message() },
        LegacyMessage { nonce: vec![0; 4096], ..message() },
    ];
    for message in asking {
        assert!(matches!(respond(&message, &secret, &conf), Err(AuthError::NegotiationFailed(_))));
    }
}

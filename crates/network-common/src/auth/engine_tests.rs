//! Tests the key exchange of `AuthEngine` with recorded and corrupt messages.

use std::ops::Range;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};

use super::*;
use crate::auth::session_keys::Side;
use crate::auth::test_support::{hex, one_bit_flips, unhex};
use crate::conf::CipherName;

// One exchange recorded with Spark: the client's keys, both messages and both derived IVs.
const CLIENT_PRIVATE: &str = "efe6b68b3fce92158e3637f6ef9d937e75558928dd4b401de04b43d300a73186";
const CLIENT_PUBLIC: &str = "fa987505e4a338d08229328dd22750491bc11de6da05d00a654c513f1c191355";
const CHALLENGE: &str = "fb00000005617070496400000010890b6e960f48e998777267a7e4e623220000003c\
    48ad7dc7ec9466da93bda9f11488dc9404050e02c661d87d67c782444944c6e369b27e0a416c30845a2d9e64271511ca98b41d65f8c426e18ff380f6";
const RESPONSE: &str = "fb00000005617070496400000010708451c9dd2792c97c1ca66e6df449ef0000003c\
    64fe899ecdaf458d4e25e9d5c5a380b8e6d1a184692fac065ed84f8592c18e9629f9c636809dca2ffc041f20346eb53db7873808ecad08b46b5ee3ff";
const INPUT_IV: &str = "fc6a5dc8b90a9dad8f54f08b51a59ed2";
const OUTPUT_IV: &str = "a72709baf00785cad6329ce09f631f71";

fn secret() -> Secret {
    Secret::new("secret")
}

/// Returns the key id by which Spark's tests compare keys (`TransportCipherUtil.getKeyId`).
fn key_id(keys: &SessionKeys) -> String {
    let mut id = [0; 32];
    hkdf_expand(&Salt::none(HKDF_SHA256).extract(&keys.key), b"keyID", &mut id).unwrap();
    hex(&id)
}

/// Returns the client's session keys of the recorded exchange.
fn recorded(version: i64) -> SessionKeys {
    let private_key = PrivateKey::from_private_key(&X25519, &unhex(CLIENT_PRIVATE)).unwrap();
    let challenge = EngineChallenge { private_key, message: unhex(CHALLENGE) };
    AuthEngine::new("appId", &secret(), version).finish(&challenge, &unhex(RESPONSE)).unwrap()
}

#[test]
fn ae_01_both_ends_derive_same_keys() {
    // Every version except 1 derives the key as version 2 does.
    for version in [1, 2, 7] {
        let secret = secret();
        let engine = AuthEngine::new("appId", &secret, version);
        let challenge = engine.create_challenge().unwrap();
        let message = AuthMessage::decode(&challenge.message_bytes()).unwrap();
        let (response, server) = engine.respond(&message).unwrap();
        let client = engine.finish(&challenge, &response).unwrap();
        assert_eq!(key_id(&client), key_id(&server));
        assert_eq!((client.input_iv, client.output_iv), (server.input_iv, server.output_iv));
        assert_eq!(client.key.len(), if version == 1 { 32 } else { 16 });
        // Tag, and length and bytes of application id, salt and ciphertext.
        assert_eq!(challenge.message_bytes().len(), 1 + 4 + 5 + 4 + 16 + 4 + 60);
    }
}

#[test]
fn ae_08_recorded_challenge_is_accepted() {
    let secret = secret();
    let engine = AuthEngine::new("appId", &secret, 1);
    let challenge = AuthMessage::decode(&unhex(CHALLENGE)).unwrap();
    assert_eq!(hex(&engine.open_public_key(&challenge, &[]).unwrap()), CLIENT_PUBLIC);
    engine.respond(&challenge).unwrap();
}

#[test]
fn ae_09_recorded_response_yields_recorded_keys() {
    let keys = recorded(2);
    assert_eq!(hex(&keys.key), "2d6e7a9048c8265c33a8f3747bfcc84c");
    assert_eq!((hex(&keys.input_iv), hex(&keys.output_iv)), (INPUT_IV.into(), OUTPUT_IV.into()));
    assert_eq!(key_id(&keys), "de04fd52d71040ed9d260579dacfdf4f5695f991ce8ddb1dde05a7335880906e");
}

#[test]
fn ae_10_recorded_response_of_version_1_yields_recorded_keys() {
    let keys = recorded(1);
    assert_eq!(hex(&keys.key), "31963f15a320d5c90333f7ecf5cf3a31c7eaf151de07fef8494663a9f47cfd31");
    assert_eq!((hex(&keys.input_iv), hex(&keys.output_iv)), (INPUT_IV.into(), OUTPUT_IV.into()));
    assert_eq!(key_id(&keys), "759e309e7e7389c0b7be46f4b988177733ea47c822a7145ecc4e4dfba94f23e7");
}

#[test]
fn ae_12_ctr_stream_matches_recorded_bytes() {
    for (version, sealed_hello, sealed_world) in
        [(1, "5874774c59", "6def8c563c7f"), (2, "204da02f06", "b5d5d6a8610c")]
    {
        let mut client = recorded(version).filters(CipherName::AesCtr, Side::Client).unwrap();
        let mut server = recorded(version).filters(CipherName::AesCtr, Side::Server).unwrap();
        let (mut sealed, mut opened) = (Vec::new(), Vec::new());
        sealed.extend(client.seal_filter.transform_to_vec(b"hello").unwrap());
        sealed.extend(client.seal_filter.transform_to_vec(b"world!").unwrap());
        assert_eq!(hex(&sealed), format!("{sealed_hello}{sealed_world}"));
        opened.extend(server.open_filter.transform_to_vec(&sealed).unwrap());
        assert_eq!(opened, b"helloworld!");

        // The server seals more than one `PIECE`; the client opens it in pieces of another size.
        let long = vec![7; (2 << 20) + 5];
        let (mut sealed, mut opened) = (Vec::new(), Vec::new());
        sealed.extend(server.seal_filter.transform_to_vec(&long).unwrap());
        assert_eq!(sealed.len(), long.len());
        for piece in sealed.chunks(32_769) {
            opened.extend(client.open_filter.transform_to_vec(piece).unwrap());
        }
        assert!(opened == long);
    }
}

#[test]
fn ae_13_empty_writes_do_not_change_cipher_stream() {
    for cipher in [CipherName::AesCtr, CipherName::AesGcm] {
        let mut client = recorded(2).filters(cipher, Side::Client).unwrap();
        let mut server = recorded(2).filters(cipher, Side::Server).unwrap();
        let (mut sealed, mut opened) = (Vec::new(), Vec::new());
        sealed.extend(client.seal_filter.transform_to_vec(b"").unwrap());
        assert_eq!(sealed, b"");
        sealed.extend(client.seal_filter.transform_to_vec(b"four").unwrap());
        opened.extend(server.open_filter.transform_to_vec(b"").unwrap());
        opened.extend(server.open_filter.transform_to_vec(&sealed).unwrap());
        assert_eq!(opened, b"four");
    }
}

#[test]
fn ae_11_different_secrets_fail() {
    let (right, wrong) = (secret(), Secret::new("another"));
    let challenge = AuthEngine::new("appId", &right, 1).create_challenge().unwrap();
    let message = AuthMessage::decode(&challenge.message_bytes()).unwrap();
    let error = AuthEngine::new("appId", &wrong, 1).respond(&message).unwrap_err();
    assert!(matches!(error, AuthError::VerificationFailed(_)), "{error}");
}

// The byte ranges of the fields in a message with the application id `appId`.
const APP_ID: Range<usize> = 5..10;
const SALT: Range<usize> = 14..30;
const CIPHERTEXT: Range<usize> = 34..94;

/// Returns the server's error for each challenge with one bit flipped in `range`, in bytes.
fn corrupt_challenges(range: Range<usize>) -> Vec<AuthError> {
    let secret = secret();
    let engine = AuthEngine::new("appId", &secret, 2);
    let challenge = engine.create_challenge().unwrap().message_bytes();
    let respond = |challenge: &[u8]| engine.respond(&AuthMessage::decode(challenge)?).map(drop);
    respond(&challenge).unwrap();
    let corrupt = one_bit_flips(&challenge).skip(8 * range.start).take(8 * range.len());
    corrupt.map(|challenge| respond(&challenge).unwrap_err()).collect()
}

/// Returns the client's error for each response with one bit flipped in `range`, in bytes.
fn corrupt_responses(range: Range<usize>) -> Vec<AuthError> {
    let secret = secret();
    let engine = AuthEngine::new("appId", &secret, 2);
    let challenge = engine.create_challenge().unwrap();
    let response =
        engine.respond(&AuthMessage::decode(&challenge.message_bytes()).unwrap()).unwrap().0;
    engine.finish(&challenge, &response).unwrap();
    let corrupt = one_bit_flips(&response).skip(8 * range.start).take(8 * range.len());
    corrupt.map(|response| engine.finish(&challenge, &response).unwrap_err()).collect()
}

/// Checks that each error reports another application id, or one that is invalid UTF-8.
fn assert_other_app(errors: &[AuthError]) {
    for error in errors {
        assert!(
            matches!(error, AuthError::AppIdMismatch { .. } | AuthError::Malformed(_)),
            "{error}"
        );
    }
    assert!(errors.iter().any(|error| matches!(error, AuthError::AppIdMismatch { .. })));
}

/// Checks that each error reports a failed verification, as with a different secret.
fn assert_mismatch(errors: &[AuthError]) {
    assert!(
        errors.iter().all(|error| matches!(error, AuthError::VerificationFailed(_))),
        "{errors:?}"
    );
}

#[test]
fn ae_02_corrupt_app_id_in_challenge_is_rejected() {
    assert_other_app(&corrupt_challenges(APP_ID));
}

#[test]
fn ae_03_corrupt_salt_in_challenge_is_rejected() {
    assert_mismatch(&corrupt_challenges(SALT));
}

#[test]
fn ae_04_corrupt_ciphertext_in_challenge_is_rejected() {
    assert_mismatch(&corrupt_challenges(CIPHERTEXT));
}

#[test]
fn ae_05_corrupt_app_id_in_response_is_rejected() {
    assert_other_app(&corrupt_responses(APP_ID));
}

#[test]
fn ae_06_corrupt_salt_in_response_is_rejected() {
    assert_mismatch(&corrupt_responses(SALT));
}

#[test]
fn ae_07_corrupt_ciphertext_in_response_is_rejected() {
    assert_mismatch(&corrupt_responses(CIPHERTEXT));
}

/// Flips bits in the other fields of the messages: the tag and the lengths.
#[test]
fn corrupt_tags_and_lengths_are_rejected() {
    for range in [0..APP_ID.start, APP_ID.end..SALT.start, SALT.end..CIPHERTEXT.start] {
        for error in corrupt_challenges(range.clone()).into_iter().chain(corrupt_responses(range)) {
            assert!(
                matches!(error, AuthError::UnexpectedMessage(_) | AuthError::Malformed(_)),
                "{error}"
            );
        }
    }
}

#[test]
fn messages_of_another_exchange_are_rejected() {
    let secret = secret();
    let engine = AuthEngine::new("appId", &secret, 2);
    let (first, second) = (engine.create_challenge().unwrap(), engine.create_challenge().unwrap());
    let response = engine.respond(&AuthMessage::decode(&first.message_bytes()).unwrap()).unwrap().0;
    engine.finish(&second, &response).unwrap_err();
    // The sender of a challenge does not accept the challenge itself as the response.
    engine.finish(&first, &first.message_bytes()).unwrap_err();
    engine.finish(&first, &response).unwrap();
}

#[test]
fn am_01_message_is_unchanged_by_encoding_and_decoding() {
    let message = AuthMessage::new("appId", [1; 16], [2; 60]);
    let encoded = message.encode();
    assert_eq!(AuthMessage::decode(&encoded).unwrap(), message);
    for end in 0..encoded.len() {
        AuthMessage::decode(&encoded[..end]).unwrap_err();
    }
    AuthMessage::decode(&[&encoded[..], &[0]].concat()).unwrap_err();
    // The length of the application id, the salt or the ciphertext does not match its bytes.
    for (position, length) in
        [(1, u32::MAX), (1, 1 << 30), (10, 17), (10, 15), (30, 61), (30, u32::MAX)]
    {
        let mut corrupt = encoded.clone();
        corrupt[position..position + 4].copy_from_slice(&u32::to_be_bytes(length));
        AuthMessage::decode(&corrupt).unwrap_err();
    }
}

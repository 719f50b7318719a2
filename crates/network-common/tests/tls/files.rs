//! Key and trust store files as `keytool` and `openssl` write them, and the errors for unusable
//! ones: Spark's `SSLFactorySuite` and the first loads of `ReloadingX509TrustManagerSuite`.

use std::sync::LazyLock;

use network_common::ErrorKind;
use proptest::prelude::*;

use crate::fixture::*;

/// The files are shared because creating them is slow.
static TOOLS: LazyLock<Files> = LazyLock::new(tools);

/// Creates files with the JDK's `keytool`: `store.jks` and `store.p12` with an RSA key (passwords
/// `store-pass` and, for the JKS key, `key-pass`), and their issuer in `trust.jks`, `trust.p12` and
/// `root.pem`.
fn tools() -> Files {
    let files = Files::kept();
    let directory = files.path("");
    let keytool = |command: &str| run(&directory, &format!("keytool {command}"));
    let store = "-storetype JKS -keystore store.jks -storepass store-pass";
    keytool(
        "-genkeypair -alias root -keyalg RSA -dname CN=root -ext bc:c -validity 7 -storetype JKS \
         -keystore root.jks -storepass root-pass -keypass root-pass",
    );
    keytool("-exportcert -rfc -alias root -keystore root.jks -storepass root-pass -file root.pem");
    keytool(&format!(
        "-genkeypair -alias Node -keyalg RSA -dname CN=node -validity 7 {store} -keypass key-pass"
    ));
    keytool(&format!("-certreq -alias Node {store} -keypass key-pass -file node.csr"));
    keytool(
        "-gencert -alias root -keystore root.jks -storepass root-pass -keypass root-pass -infile \
         node.csr -rfc -outfile node.pem -validity 7 -ext san=ip:127.0.0.1,dns:localhost",
    );
    keytool(&format!("-importcert -noprompt -alias root {store} -file root.pem"));
    keytool(&format!("-importcert -noprompt -alias Node {store} -keypass key-pass -file node.pem"));
    keytool(
        "-importkeystore -srckeystore store.jks -srcstorepass store-pass -srcalias node \
         -srckeypass key-pass -destkeystore store.p12 -deststoretype PKCS12 -deststorepass \
         store-pass -destkeypass store-pass",
    );
    for (kind, name) in [("JKS", "trust.jks"), ("PKCS12", "trust.p12")] {
        keytool(&format!(
            "-importcert -noprompt -alias root -file root.pem -storetype {kind} -keystore {name} \
             -storepass trust-pass"
        ));
    }
    files
}

fn store(files: &Files, name: &str) -> Settings {
    Settings::on().with("keyStore", &files.named(name)).with("keyStorePassword", "store-pass")
}

fn trust(files: &Files, name: &str) -> Settings {
    Settings::on().with("trustStore", &files.named(name)).with("trustStorePassword", "trust-pass")
}

#[tokio::test]
async fn sslf_01_key_stores_with_passwords_are_loaded() {
    let files = &*TOOLS;
    let right = store(files, "store.jks").with("keyPassword", "key-pass");
    for key in [&right, &store(files, "store.p12")] {
        for name in ["trust.jks", "trust.p12", "root.pem"] {
            let error = connect_error(key, &trust(files, name), "127.0.0.1").await;
            assert!(error.is_none(), "{name}: {error:?}");
        }
    }
    // As in Java, the certificates in a key store are trusted too: those of the key, and separate
    // entries.
    let error = connect_error(
        &right,
        &trust(files, "store.jks").with("trustStorePassword", "store-pass"),
        "localhost",
    )
    .await;
    assert!(error.is_none(), "{error:?}");
}

/// Without a key password, the store's password is used; in PKCS#12 both are always the same.
#[tokio::test]
async fn sslf_03_key_store_password_is_used_for_key() {
    let files = Files::new();
    let directory = files.path("");
    run(
        &directory,
        "keytool -genkeypair -alias one -keyalg EC -dname CN=localhost -validity 7 -storetype \
         JKS -keystore one.jks -storepass store-pass -keypass store-pass",
    );
    let one = store(&files, "one.jks");
    let pinned = trust(&files, "one.jks").with("trustStorePassword", "store-pass");
    let error = connect_error(&one, &pinned, "localhost").await;
    assert!(error.is_none(), "{error:?}");
}

#[test]
fn sslf_04_key_and_store_passwords_are_distinct() {
    let files = &*TOOLS;
    let jks = store(files, "store.jks");
    for wrong in [jks.clone(), jks.with("keyPassword", "wrong")] {
        let error = wrong.config_error();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_contains(
            &error,
            &["spark.ssl.rpc.keyStore", "store.jks", "'node'", "spark.ssl.rpc.keyPassword"],
        );
    }
}

#[test]
fn wrong_store_passwords_are_rejected() {
    let files = &*TOOLS;
    for name in ["store.jks", "store.p12"] {
        let error = store(files, name).with("keyStorePassword", "wrong-pass").config_error();
        assert_contains(&error, &["spark.ssl.rpc.keyStore", name, "password"]);
    }
    for name in ["trust.jks", "trust.p12"] {
        let error = trust(files, name).with("trustStorePassword", "wrong-pass").config_error();
        assert_contains(&error, &["spark.ssl.rpc.trustStore", name, "password"]);
    }
    // As in Java, a JKS trust store opens unchecked without a password; a PKCS#12 store is
    // encrypted.
    let without = |name| Settings::on().with("trustStore", &files.named(name));
    without("trust.jks").client_context().check_security().unwrap();
    without("trust.p12").config_error();
    // A trust store contains no private key.
    let error = store(files, "trust.jks").with("keyStorePassword", "trust-pass").config_error();
    assert_contains(&error, &["no key"]);
}

#[tokio::test]
async fn openssl_stores_are_loaded() {
    let files = Files::new();
    let directory = files.path("");
    run(
        &directory,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k.pem -out \
         c.pem -subj /CN=localhost -days 7 -addext subjectAltName=DNS:localhost",
    );
    run(
        &directory,
        "openssl pkcs12 -export -inkey k.pem -in c.pem -out new.p12 -passout pass:store-pass",
    );
    run(
        &directory,
        "openssl pkcs12 -export -inkey k.pem -in c.pem -out old.p12 -passout pass:store-pass \
         -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1",
    );
    run(
        &directory,
        "openssl pkcs12 -export -nokeys -in c.pem -out trust.p12 -passout pass:trust-pass",
    );
    for name in ["new.p12", "old.p12"] {
        for trusted in ["trust.p12", "c.pem"] {
            let error =
                connect_error(&store(&files, name), &trust(&files, trusted), "localhost").await;
            assert!(error.is_none(), "{name} {trusted}: {error:?}");
        }
    }
    // One PEM file with certificate and key.
    let both = std::fs::read_to_string(files.path("k.pem")).unwrap()
        + &std::fs::read_to_string(files.path("c.pem")).unwrap();
    let one = Settings::on().with("keyStore", &files.write("both.pem", both));
    assert!(connect_error(&one, &trust(&files, "c.pem"), "localhost").await.is_none());
}

/// Creates a certificate in `c.pem` and its key in `k.pem`.
fn pem() -> Files {
    let files = Files::new();
    run(
        &files.path(""),
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=localhost \
         -days 7 -addext subjectAltName=DNS:localhost",
    );
    files
}

fn with_key(files: &Files, key: &str) -> Settings {
    Settings::on().with("certChain", &files.named("c.pem")).with("privateKey", &files.named(key))
}

#[tokio::test]
async fn sslf_01_encrypted_pem_keys_are_loaded() {
    let files = pem();
    let directory = files.path("");
    for (name, cipher) in [
        ("aes.pem", "-v2 aes-256-cbc"),
        ("des.pem", "-v2 des3 -v2prf hmacWithSHA1"),
        ("scrypt.pem", "-scrypt"),
    ] {
        run(
            &directory,
            &format!("openssl pkcs8 -topk8 -in k.pem -out {name} {cipher} -passout pass:k3y"),
        );
    }
    run(&directory, "openssl rsa -in k.pem -traditional -aes128 -passout pass:k3y -out old.pem");
    let with = |key| with_key(&files, key);
    for key in ["aes.pem", "des.pem", "scrypt.pem"] {
        let right = with(key).with("privateKeyPassword", "k3y");
        let error = connect_error(&right, &right, "localhost").await;
        assert!(error.is_none(), "{key}: {error:?}");
        for wrong in [with(key), with(key).with("privateKeyPassword", "wrong")] {
            let error = wrong.config_error();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert_contains(
                &error,
                &["spark.ssl.rpc.privateKey", key, "spark.ssl.rpc.privateKeyPassword"],
            );
        }
    }
    assert_contains(
        &with("old.pem").with("privateKeyPassword", "k3y").config_error(),
        &["old.pem", "openssl pkcs8 -topk8"],
    );
    assert_contains(&with("c.pem").config_error(), &["spark.ssl.rpc.privateKey", "c.pem"]);
    let swapped = Settings::on()
        .with("certChain", &files.named("k.pem"))
        .with("privateKey", &files.named("k.pem"));
    assert_contains(
        &swapped.config_error(),
        &["spark.ssl.rpc.certChain", "k.pem", "no PEM certificate"],
    );
}

#[tokio::test]
async fn sslf_02_plain_pem_keys_are_loaded() {
    let files = pem();
    run(&files.path(""), "openssl rsa -in k.pem -traditional -out pkcs1.pem");
    for key in ["k.pem", "pkcs1.pem"] {
        let settings = with_key(&files, key);
        let error = connect_error(&settings, &settings, "localhost").await;
        assert!(error.is_none(), "{key}: {error:?}");
    }
}

#[test]
fn rtm_01_missing_file_is_named_in_error() {
    let files = Fixture::new().files;
    let missing = files.named("missing");
    for settings in [
        Settings::on().with("trustStore", &missing),
        Settings::on().with("keyStore", &missing),
        Settings::on().with("certChain", &missing),
        Settings::on().with("certChain", &files.named("cert.pem")).with("privateKey", &missing),
    ] {
        let error = settings.config_error();
        assert_eq!(error.kind(), ErrorKind::Config);
        let setting = settings.last().0;
        assert_contains(&error, &[&setting, &missing, "No such file"]);
    }
}

#[test]
fn rtm_02_corrupt_file_is_named_in_error() {
    let files = Files::new();
    for content in [
        &b"x"[..],
        b"",
        b"\xfe\xed\xfe\xed",
        b"\x30",
        b"\x30\x82\x01\x00",
        b"-----BEGIN CERTIFICATE-----\n!\n",
    ] {
        let path = files.write("corrupt", content);
        for setting in ["trustStore", "keyStore"] {
            let error = Settings::on().with(setting, &path).config_error();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert_contains(&error, &[&format!("spark.ssl.rpc.{setting}"), &path]);
        }
    }
}

/// Truncates or changes files at many offsets. All are rejected; without a password there is no
/// digest, so only panics are excluded.
#[test]
fn damaged_jks_files_are_rejected() {
    let files = tools();
    let stores = ["store.jks", "trust.jks"].map(|name| std::fs::read(files.path(name)).unwrap());
    let config_error = |content: &[u8], password: Option<&str>| {
        let path = files.write("damaged.jks", content);
        let as_trust = Settings::on().with("trustStore", &path);
        let as_key = Settings::on().with("keyStore", &path).with("keyPassword", "key-pass");
        match password {
            Some(password) => {
                assert_contains(
                    &as_trust.with("trustStorePassword", password).config_error(),
                    &["damaged.jks"],
                );
                assert_contains(
                    &as_key.with("keyStorePassword", password).config_error(),
                    &["damaged.jks"],
                );
            }
            None => {
                // Without a digest the file may still load; it must not panic.
                let _ = (
                    as_trust.client_context().check_security(),
                    as_key.client_context().check_security(),
                );
            }
        }
    };
    for (content, password) in stores.iter().zip(["store-pass", "trust-pass"]) {
        for end in (0..content.len()).step_by(7) {
            config_error(&content[..end], Some(password));
            config_error(&content[..end], None);
        }
        for position in (0..content.len()).step_by(11) {
            let mut changed = content.clone();
            changed[position] ^= 0x40;
            config_error(&changed, Some(password));
            config_error(&changed, None);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Lengths and counts that exceed the file.
    #[test]
    fn hostile_jks_files_are_rejected(
        version in 0u32..4,
        count in any::<u32>(),
        rest in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut content = vec![0xfe, 0xed, 0xfe, 0xed];
        content.extend(version.to_be_bytes());
        content.extend(count.to_be_bytes());
        content.extend(rest);
        let files = Files::new();
        let path = files.write("hostile.jks", content);
        let error = Settings::on().with("trustStore", &path).config_error();
        prop_assert_eq!(error.kind(), ErrorKind::Config);
    }
}

//! Which certificates are trusted: names, dates, chains, certificates that are in the trust store
//! themselves, and client certificates.

use network_common::ErrorKind;
use rcgen::{BasicConstraints, IsCa};

use crate::fixture::*;

#[tokio::test]
async fn host_name_must_match_certificate() {
    let fixture = Fixture::new();
    for host in ["127.0.0.1", "localhost"] {
        assert!(connect_error(&fixture.server, &fixture.client, host).await.is_none(), "{host}");
    }
    let files = Files::new();
    let elsewhere = files.identity(&fixture.ca.issue(&["elsewhere.example", "127.0.0.2"]));
    for host in ["127.0.0.1", "localhost"] {
        let error = connect_error(&elsewhere, &fixture.client, host).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(!error.is_retryable());
        assert_contains(&error, &[host, "elsewhere.example", "spark.ssl.rpc.hostnameVerification"]);
        assert!(error.peer().unwrap().starts_with(host));
    }
    let unverified = fixture.client.with("hostnameVerification", "false");
    assert!(connect_error(&elsewhere, &unverified, "localhost").await.is_none());
}

/// The chain is checked even without host name verification.
#[tokio::test]
async fn unknown_issuer_is_rejected() {
    let (fixture, files) = (Fixture::new(), Files::new());
    for (name, error) in [("bad CA", "UnknownIssuer"), ("good CA", "BadSignature")] {
        let other = files.identity(&Ca::new(name).issue(&["127.0.0.1"]));
        for client in
            [fixture.client.clone(), fixture.client.clone().with("hostnameVerification", "false")]
        {
            let tls_error = connect_error(&other, &client, "127.0.0.1").await.unwrap();
            assert_eq!(tls_error.kind(), ErrorKind::Tls);
            assert_contains(&tls_error, &[error, "spark.ssl.rpc.trustStore"]);
        }
    }
    let lone = files.identity(&self_signed(&["127.0.0.1"], |_| {}));
    assert!(
        connect_error(&lone, &fixture.server, "127.0.0.1").await.is_some(),
        "a self-signed certificate outside of the trust store must fail"
    );
}

#[tokio::test]
async fn expired_certificate_is_rejected() {
    let (files, ca) = (Files::new(), Ca::new("CA"));
    let server = files.identity(&ca.issue_with(&["127.0.0.1"], expired));
    let error = connect_error(&server, &files.trust(&ca.certificate), "127.0.0.1").await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(&error, &["expired"]);

    // Also an expired certificate that is in the trust store itself.
    let lone = self_signed(&["127.0.0.1"], expired);
    let (server, client) = (files.identity(&lone), files.trust(&lone.certificate));
    assert_contains(&connect_error(&server, &client, "127.0.0.1").await.unwrap(), &["expired"]);

    let early =
        self_signed(&["127.0.0.1"], |params| params.not_before = rcgen::date_time_ymd(2900, 1, 1));
    let (server, client) = (files.identity(&early), files.trust(&early.certificate));
    assert_contains(
        &connect_error(&server, &client, "127.0.0.1").await.unwrap(),
        &["not valid yet"],
    );
}

#[tokio::test]
async fn expired_issuer_is_rejected() {
    let (files, root) = (Files::new(), Ca::new("root"));
    let between = root.intermediate(expired);
    let Pem { certificate, key } = between.issue(&["127.0.0.1"]);
    let server = files.identity(&Pem { certificate: certificate + &between.certificate, key });
    let error = connect_error(&server, &files.trust(&root.certificate), "127.0.0.1").await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_contains(&error, &["expired"]);
}

#[tokio::test]
async fn intermediate_certificates_are_sent() {
    let (files, root) = (Files::new(), Ca::new("root"));
    let between = root.intermediate(|_| {});
    let mut pem = between.issue(&["127.0.0.1"]);
    let trust = files.trust(&root.certificate);
    let error = connect_error(&files.identity(&pem), &trust, "127.0.0.1").await.unwrap();
    assert_contains(&error, &["UnknownIssuer"]);
    pem.certificate += &between.certificate;
    assert!(connect_error(&files.identity(&pem), &trust, "127.0.0.1").await.is_none());
}

/// Many users of Spark have one self-signed certificate for all nodes.
#[tokio::test]
async fn certificate_in_trust_store_needs_no_chain() {
    let files = Files::new();
    for (kind, lone) in [
        ("plain", self_signed(&["127.0.0.1"], |_| {})),
        (
            "marked as a CA",
            self_signed(&["127.0.0.1"], |params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
            }),
        ),
        // Issued by a CA that is in no trust store.
        ("issued", Ca::new("unknown").issue(&["127.0.0.1"])),
    ] {
        let server = files.identity(&lone);
        assert!(
            connect_error(&server, &files.trust(&lone.certificate), "127.0.0.1").await.is_none(),
            "{kind}"
        );
        // Without a trust store a node trusts its own chain, because all nodes have the same files.
        assert!(connect_error(&server, &server, "127.0.0.1").await.is_none(), "{kind}");
        let error = connect_error(&server, &server, "localhost").await.unwrap();
        assert_contains(&error, &["localhost", "127.0.0.1"]);
    }
}

/// `openssl req` without extensions makes certificates of version 1, which have neither alternative
/// names nor usage marks. Both TLS versions check the key.
#[tokio::test]
async fn trusted_certificate_of_version_1_is_accepted() {
    let files = Files::new();
    for (key, host) in
        [("rsa:2048", "localhost"), ("ec -pkeyopt ec_paramgen_curve:P-256", "localhost")]
    {
        let directory = files.path("");
        run(
            &directory,
            &format!(
                "openssl req -new -newkey {key} -nodes -keyout v1.key -out v1.csr -subj /CN={host}"
            ),
        );
        run(&directory, "openssl x509 -req -in v1.csr -signkey v1.key -out v1.crt -days 7");
        let settings = Settings::on()
            .with("certChain", &files.named("v1.crt"))
            .with("privateKey", &files.named("v1.key"));
        assert!(connect_error(&settings, &settings, "localhost").await.is_none(), "{key}");
        let error = connect_error(&settings, &settings, "127.0.0.1").await.unwrap();
        assert_contains(&error, &["127.0.0.1", "CN=localhost"]);
        let other =
            files.trust(&Ca::new("other").certificate).with("hostnameVerification", "false");
        assert_eq!(
            connect_error(&settings, &other, "localhost").await.unwrap().kind(),
            ErrorKind::Tls
        );
    }
}

#[tokio::test]
async fn certificate_with_foreign_key_is_rejected() {
    let (files, lone) = (Files::new(), self_signed(&["127.0.0.1"], |_| {}));
    let mismatched = Pem { certificate: lone.certificate, key: self_signed(&[], |_| {}).key };
    let error = files.identity(&mismatched).config_error();
    assert_contains(
        &error,
        &["spark.ssl.rpc.privateKey", "does not belong to the certificate", "lone node"],
    );
}

#[tokio::test]
async fn mutual_tls_requires_client_certificate() {
    for protocol in ["TLSv1.3", "TLSv1.2"] {
        let (fixture, mine, theirs) = (Fixture::new(), Files::new(), Files::new());
        let trust = fixture.files.named("trust.pem");
        let server = fixture
            .server
            .with("needClientAuth", "true")
            .with("trustStore", &trust)
            .with("protocol", protocol);
        let anonymous = fixture.client.with("protocol", protocol);
        let error = connect_error(&server, &anonymous, "127.0.0.1").await.unwrap();
        assert_contains(&error, &["the peer requires a certificate of this process"]);

        let known = mine
            .identity(&fixture.ca.issue(&["client"]))
            .with("trustStore", &trust)
            .with("protocol", protocol);
        assert!(connect_error(&server, &known, "127.0.0.1").await.is_none());

        let unknown = theirs.identity(&Ca::new("other").issue(&["client"]));
        let unknown = unknown.with("trustStore", &trust).with("protocol", protocol);
        let error = connect_error(&server, &unknown, "127.0.0.1").await.unwrap();
        assert_contains(&error, &["the peer does not accept the certificate of this process"]);

        let old = theirs.identity(&fixture.ca.issue_with(&["client"], expired));
        let old = old.with("trustStore", &trust).with("protocol", protocol);
        let error = connect_error(&server, &old, "127.0.0.1").await.unwrap();
        assert_contains(&error, &["the peer does not accept the certificate of this process"]);
    }
}

#[tokio::test]
async fn client_certificate_in_trust_store_is_accepted() {
    let (fixture, files) = (Fixture::new(), Files::new());
    let lone =
        self_signed(&["client"], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let server = fixture.server.with("needClientAuth", "true");
    let server = server.with("trustStore", &files.write("clients.pem", &lone.certificate));
    let client = files.identity(&lone).with("trustStore", &fixture.files.named("trust.pem"));
    assert!(connect_error(&server, &client, "127.0.0.1").await.is_none());
}

#[tokio::test]
async fn client_auth_requires_trust_store() {
    let files = Files::new();
    let store = files.path("");
    run(
        &store,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=x -days 7",
    );
    run(&store, "openssl pkcs12 -export -inkey k.pem -in c.pem -out k.p12 -passout pass:secret");
    let settings =
        Settings::on().with("keyStore", &files.named("k.p12")).with("keyStorePassword", "secret");
    let error = settings.with("needClientAuth", "true").config_error();
    assert_contains(&error, &["spark.ssl.rpc.needClientAuth", "spark.ssl.rpc.trustStore"]);
}

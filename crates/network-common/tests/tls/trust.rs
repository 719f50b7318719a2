//! Who is trusted: names, dates, chains, certificates that are trusted themselves, and clients that
//! must show theirs.

use network_common::ErrorKind;
use rcgen::{BasicConstraints, IsCa};

use crate::fixture::*;

#[tokio::test]
async fn names_and_addresses_must_be_those_of_the_certificate() {
    let world = World::new();
    for host in ["127.0.0.1", "localhost"] {
        assert!(outcome(&world.server, &world.client, host).await.is_none(), "{host}");
    }
    let files = Files::new();
    let elsewhere = files.identity(&world.ca.issue(&["elsewhere.example", "127.0.0.2"]));
    for host in ["127.0.0.1", "localhost"] {
        let error = outcome(&elsewhere, &world.client, host).await.unwrap();
        assert_eq!(error.kind(), ErrorKind::Tls);
        assert!(!error.is_retryable());
        assert_says(&error, &[host, "elsewhere.example", "spark.ssl.rpc.hostnameVerification"]);
        assert!(error.peer().unwrap().starts_with(host));
    }
    let careless = world.client.with("hostnameVerification", "false");
    assert!(outcome(&elsewhere, &careless, "localhost").await.is_none());
}

/// Without names, chains still count.
#[tokio::test]
async fn an_unknown_issuer_is_refused() {
    let (world, files) = (World::new(), Files::new());
    for (name, error) in [("bad CA", "UnknownIssuer"), ("good CA", "BadSignature")] {
        let other = files.identity(&Ca::new(name).issue(&["127.0.0.1"]));
        for client in
            [world.client.clone(), world.client.clone().with("hostnameVerification", "false")]
        {
            let refused = outcome(&other, &client, "127.0.0.1").await.unwrap();
            assert_eq!(refused.kind(), ErrorKind::Tls);
            assert_says(&refused, &[error, "spark.ssl.rpc.trustStore"]);
        }
    }
    let lone = files.identity(&self_signed(&["127.0.0.1"], |_| {}));
    assert!(
        outcome(&lone, &world.server, "127.0.0.1").await.is_some(),
        "self-signed, and not in the trust store"
    );
}

#[tokio::test]
async fn expired_certificates_are_refused() {
    let (files, ca) = (Files::new(), Ca::new("CA"));
    let server = files.identity(&ca.issue_with(&["127.0.0.1"], expired));
    let error = outcome(&server, &files.trust(&ca.certificate), "127.0.0.1").await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_says(&error, &["expired"]);

    // Also one that is in the trust store itself.
    let lone = self_signed(&["127.0.0.1"], expired);
    let (server, client) = (files.identity(&lone), files.trust(&lone.certificate));
    assert_says(&outcome(&server, &client, "127.0.0.1").await.unwrap(), &["expired"]);

    let early =
        self_signed(&["127.0.0.1"], |params| params.not_before = rcgen::date_time_ymd(2900, 1, 1));
    let (server, client) = (files.identity(&early), files.trust(&early.certificate));
    assert_says(&outcome(&server, &client, "127.0.0.1").await.unwrap(), &["not valid yet"]);
}

#[tokio::test]
async fn an_expired_issuer_is_refused() {
    let (files, root) = (Files::new(), Ca::new("root"));
    let between = root.intermediate(expired);
    let Pem { certificate, key } = between.issue(&["127.0.0.1"]);
    let server = files.identity(&Pem { certificate: certificate + &between.certificate, key });
    let error = outcome(&server, &files.trust(&root.certificate), "127.0.0.1").await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Tls);
    assert_says(&error, &["expired"]);
}

#[tokio::test]
async fn intermediate_certificates_are_sent_along() {
    let (files, root) = (Files::new(), Ca::new("root"));
    let between = root.intermediate(|_| {});
    let mut pem = between.issue(&["127.0.0.1"]);
    let trust = files.trust(&root.certificate);
    let error = outcome(&files.identity(&pem), &trust, "127.0.0.1").await.unwrap();
    assert_says(&error, &["UnknownIssuer"]);
    pem.certificate += &between.certificate;
    assert!(outcome(&files.identity(&pem), &trust, "127.0.0.1").await.is_none());
}

/// What Spark's users have: one certificate for everything, made without much thought.
#[tokio::test]
async fn a_certificate_in_the_trust_store_needs_no_chain() {
    let files = Files::new();
    for (kind, lone) in [
        ("plain", self_signed(&["127.0.0.1"], |_| {})),
        (
            "marked as a CA",
            self_signed(&["127.0.0.1"], |params| {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)
            }),
        ),
        // Of a CA that nobody knows.
        ("issued", Ca::new("unknown").issue(&["127.0.0.1"])),
    ] {
        let server = files.identity(&lone);
        assert!(
            outcome(&server, &files.trust(&lone.certificate), "127.0.0.1").await.is_none(),
            "{kind}"
        );
        // Without a trust store, the own chain is trusted: every node has the same files.
        assert!(outcome(&server, &server, "127.0.0.1").await.is_none(), "{kind}");
        let error = outcome(&server, &server, "localhost").await.unwrap();
        assert_says(&error, &["localhost", "127.0.0.1"]);
    }
}

/// Version 1 has neither names nor marks; `openssl req` without extensions makes such. Both
/// versions of TLS look at its key.
#[tokio::test]
async fn a_trusted_certificate_of_version_1_is_accepted() {
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
        assert!(outcome(&settings, &settings, "localhost").await.is_none(), "{key}");
        let error = outcome(&settings, &settings, "127.0.0.1").await.unwrap();
        assert_says(&error, &["127.0.0.1", "CN=localhost"]);
        let other =
            files.trust(&Ca::new("other").certificate).with("hostnameVerification", "false");
        assert_eq!(outcome(&settings, &other, "localhost").await.unwrap().kind(), ErrorKind::Tls);
    }
}

#[tokio::test]
async fn a_trusted_certificate_proves_nothing_without_its_key() {
    let (files, lone) = (Files::new(), self_signed(&["127.0.0.1"], |_| {}));
    let stolen = Pem { certificate: lone.certificate, key: self_signed(&[], |_| {}).key };
    let error = files.identity(&stolen).refused();
    assert_says(&error, &["spark.ssl.rpc.privateKey", "not that of the certificate", "lone node"]);
}

#[tokio::test]
async fn mutual_tls_wants_certificates_of_clients() {
    for protocol in ["TLSv1.3", "TLSv1.2"] {
        let (world, mine, theirs) = (World::new(), Files::new(), Files::new());
        let trust = world.files.named("trust.pem");
        let server = world
            .server
            .with("needClientAuth", "true")
            .with("trustStore", &trust)
            .with("protocol", protocol);
        let anonymous = world.client.with("protocol", protocol);
        let error = outcome(&server, &anonymous, "127.0.0.1").await.unwrap();
        assert_says(&error, &["the peer demands a certificate of ours"]);

        let known = mine
            .identity(&world.ca.issue(&["client"]))
            .with("trustStore", &trust)
            .with("protocol", protocol);
        assert!(outcome(&server, &known, "127.0.0.1").await.is_none());

        let stranger = theirs.identity(&Ca::new("other").issue(&["client"]));
        let stranger = stranger.with("trustStore", &trust).with("protocol", protocol);
        let error = outcome(&server, &stranger, "127.0.0.1").await.unwrap();
        assert_says(&error, &["the peer does not accept our certificate"]);

        let old = theirs.identity(&world.ca.issue_with(&["client"], expired));
        let old = old.with("trustStore", &trust).with("protocol", protocol);
        let error = outcome(&server, &old, "127.0.0.1").await.unwrap();
        assert_says(&error, &["the peer does not accept our certificate"]);
    }
}

#[tokio::test]
async fn a_client_may_be_trusted_by_its_very_certificate() {
    let (world, files) = (World::new(), Files::new());
    let lone =
        self_signed(&["client"], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let server = world.server.with("needClientAuth", "true");
    let server = server.with("trustStore", &files.write("clients.pem", &lone.certificate));
    let client = files.identity(&lone).with("trustStore", &world.files.named("trust.pem"));
    assert!(outcome(&server, &client, "127.0.0.1").await.is_none());
}

#[tokio::test]
async fn asking_clients_needs_a_trust_store() {
    let files = Files::new();
    let store = files.path("");
    run(
        &store,
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k.pem -out c.pem -subj /CN=x -days 7",
    );
    run(&store, "openssl pkcs12 -export -inkey k.pem -in c.pem -out k.p12 -passout pass:secret");
    let settings =
        Settings::on().with("keyStore", &files.named("k.p12")).with("keyStorePassword", "secret");
    let error = settings.with("needClientAuth", "true").refused();
    assert_says(&error, &["spark.ssl.rpc.needClientAuth", "spark.ssl.rpc.trustStore"]);
}

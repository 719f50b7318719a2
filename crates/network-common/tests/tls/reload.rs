//! Certificate and key files that change while connections are open: Spark's
//! `ReloadingX509TrustManagerSuite`, extended to keys.

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use network_common::{TransportClientFactory, TransportServer};

use crate::fixture::*;
use crate::support::*;

/// So short that every new connection checks the files.
const INTERVAL: Duration = Duration::from_millis(1);

fn reloading(settings: Settings) -> Settings {
    settings.with("trustStoreReloadingEnabled", "true").with("trustStoreReloadIntervalMs", "1")
}

/// Servers with certificates of different issuers, and trust stores with some of the issuers.
struct Issuers {
    files: Files,
    cas: Vec<Ca>,
    servers: Vec<TransportServer>,
}

impl Issuers {
    async fn new(count: usize) -> Self {
        let files = Files::new();
        let cas: Vec<_> = (0..count).map(|number| Ca::new(&format!("CA {number}"))).collect();
        let mut servers = Vec::new();
        for ca in &cas {
            let identity = files.identity(&ca.issue(&["127.0.0.1"]));
            servers.push(serve(&identity.context(Handler::new())).await);
        }
        Self { files, cas, servers }
    }

    /// Writes a trust store with the first `count` issuers.
    fn write(&self, name: &str, count: usize) {
        let all: String = self.cas[..count].iter().map(|ca| ca.certificate.as_str()).collect();
        self.files.write(name, all);
    }

    fn factory(&self, settings: Settings) -> TransportClientFactory {
        settings
            .with("trustStore", &self.files.named("trust.pem"))
            .client_context()
            .create_client_factory()
    }

    /// Returns the number of servers that accept a new connection.
    async fn trusted(&self, factory: &TransportClientFactory) -> usize {
        tokio::time::sleep(2 * INTERVAL).await;
        let mut trusted = 0;
        for server in &self.servers {
            trusted += usize::from(
                within(factory.create_unmanaged_client(server.local_addr())).await.is_ok(),
            );
        }
        trusted
    }
}

#[tokio::test]
async fn rtm_03_changed_trust_store_is_reloaded() {
    let issuers = Issuers::new(2).await;
    issuers.write("trust.pem", 1);
    let (changing, fixed) =
        (issuers.factory(reloading(Settings::on())), issuers.factory(Settings::on()));
    assert_eq!(issuers.trusted(&changing).await, 1);
    issuers.write("trust.pem", 2);
    assert_eq!(issuers.trusted(&changing).await, 2);
    assert_eq!(
        issuers.trusted(&fixed).await,
        1,
        "reloading must be enabled by spark.ssl.rpc.trustStoreReloadingEnabled"
    );
    issuers.write("trust.pem", 1);
    assert_eq!(issuers.trusted(&changing).await, 1, "removed issuers must no longer be trusted");
}

#[tokio::test]
async fn rtm_04_missing_trust_store_keeps_old_one() {
    let issuers = Issuers::new(2).await;
    issuers.write("trust.pem", 1);
    let factory = issuers.factory(reloading(Settings::on()));
    std::fs::remove_file(issuers.files.path("trust.pem")).unwrap();
    assert_eq!(issuers.trusted(&factory).await, 1);
    issuers.write("trust.pem", 2);
    assert_eq!(issuers.trusted(&factory).await, 2, "the new file must be loaded");
}

#[tokio::test]
async fn rtm_05_corrupt_trust_store_keeps_old_one() {
    let issuers = Issuers::new(2).await;
    issuers.write("trust.pem", 1);
    let factory = issuers.factory(reloading(Settings::on()));
    issuers.files.write("trust.pem", "junk");
    assert_eq!(issuers.trusted(&factory).await, 1);
    issuers.write("trust.pem", 2);
    assert_eq!(issuers.trusted(&factory).await, 2);
}

#[tokio::test]
async fn rtm_06_symbolic_links_are_followed() {
    let issuers = Issuers::new(3).await;
    for (name, count) in [("one", 1), ("two", 2)] {
        issuers.write(name, count);
    }
    let link = issuers.files.path("trust.pem");
    symlink(issuers.files.path("one"), &link).unwrap();
    let factory = issuers.factory(reloading(Settings::on()));
    assert_eq!(issuers.trusted(&factory).await, 1);
    std::fs::remove_file(&link).unwrap();
    symlink(issuers.files.path("two"), &link).unwrap();
    assert_eq!(issuers.trusted(&factory).await, 2, "a changed link must be noticed");
    issuers.write("two", 3);
    assert_eq!(issuers.trusted(&factory).await, 3, "a changed target must be noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_key_is_reloaded_under_live_traffic() {
    let mut fixture = Fixture::new();
    fixture.server = reloading(fixture.server);
    let pair = fixture.pair(Handler::new()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn({
        let (client, stop) = (pair.client.clone(), Arc::clone(&stop));
        async move {
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let message = pattern(50_000, count);
                assert!(client.send_rpc(message.clone()).await.unwrap() == message);
                count += 1;
            }
            count
        }
    });
    let second = Ca::new("second CA");
    let pem = second.issue(&["127.0.0.1"]);
    let files = Files::new();
    let strict = files.trust(&second.certificate).client_context().create_client_factory();
    let address = pair.server.local_addr();

    // A certificate without its key is not loaded.
    fixture.files.write("cert.pem", &pem.certificate);
    tokio::time::sleep(2 * INTERVAL).await;
    within(strict.create_unmanaged_client(address)).await.unwrap_err();
    within(pair.factory.create_unmanaged_client(address)).await.unwrap();

    fixture.files.write("key.pem", &pem.key);
    tokio::time::sleep(2 * INTERVAL).await;
    let client = within(strict.create_unmanaged_client(address)).await.unwrap();
    assert_eq!(within(client.send_rpc("new")).await.unwrap(), "new");
    within(pair.factory.create_unmanaged_client(address)).await.unwrap_err();

    stop.store(true, Ordering::Relaxed);
    assert!(within(traffic).await.unwrap() > 0);
    pair.assert_alive().await;
}

//! Settings except TLS, and metrics: Spark's `TransportConfSuite` (row `conf_12` and all keys of
//! `TransportConf`) and `NettyMemoryMetricsSuite` (row `met_01`).
//!
//! Rows `conf_01` to `conf_11` concern TLS and are in `tests/tls/settings.rs`. Row `met_02` counts
//! a JVM allocator and has no counterpart. Row `met_01` keeps the prefixes of names; our gauges
//! replace heap and direct memory.

// Helper functions outside of tests unwrap as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use network_common::{ErrorKind, IoMode, ManagedBuffer, TransportConf, TransportContext};
use parking_lot::Mutex;
use std::sync::Arc;
use support::*;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn with(key: &str, value: &str) -> TransportConf {
    conf(&[(key, value)])
}

/// Checks that the error names the key, the value and the accepted values.
fn assert_rejected(key: &str, value: &str, accepted: &str) {
    let error = TransportConf::new(MODULE).with(key, value).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!error.is_retryable() && !error.is_timeout());
    let text = error.to_string();
    for part in [key, &format!("'{value}'"), accepted] {
        assert!(text.contains(part), "{text} should contain {part}");
    }
    let by_settings =
        TransportConf::from_settings(MODULE, [("spark.ok", "1"), (key, value)]).unwrap_err();
    assert_eq!(by_settings.to_string(), text);
}

/// Without the feature `tls`, enabling TLS must fail instead of being ignored.
#[cfg(not(feature = "tls"))]
#[test]
fn conf_07_tls_is_rejected_in_build_without_tls() {
    assert_rejected("spark.ssl.rpc.enabled", "true", "feature 'tls'");
    with("spark.ssl.rpc.enabled", "false");
    with("spark.ssl.rpc.keyStore", "/ignored");
}

#[test]
fn conf_12_io_mode_has_module_setting_and_default() {
    let mode = |settings: &[(&str, &str)]| conf(settings).io_mode();
    assert_eq!(mode(&[]), IoMode::Auto);
    assert_eq!(mode(&[("spark.io.mode.default", "NIO")]), IoMode::Nio);
    let both = [("spark.shuffle.io.mode", "AUTO"), ("spark.io.mode.default", "NIO")];
    assert_eq!(mode(&both), IoMode::Auto, "the module's own setting has precedence");
    assert_eq!(mode(&[both[1], both[0]]), IoMode::Auto, "the order must not matter");
    assert_eq!(
        mode(&[("spark.rpc.io.mode", "NIO")]),
        IoMode::Auto,
        "settings of other modules must be ignored"
    );
    assert_eq!(mode(&[("spark.shuffle.io.mode", " nio ")]), IoMode::Nio);
    #[cfg(target_os = "linux")]
    {
        assert_eq!(mode(&[("spark.shuffle.io.mode", "epoll")]), IoMode::Epoll);
        assert_rejected("spark.shuffle.io.mode", "KQUEUE", "EPOLL");
    }
    for key in ["spark.shuffle.io.mode", "spark.io.mode.default"] {
        assert_rejected(key, "IOCP", "AUTO");
        assert_rejected(key, "", "NIO");
    }
}

#[test]
fn durations_are_parsed_with_units() {
    type Get = fn(&TransportConf) -> Option<Duration>;
    let keys: [(&str, Get, Option<Duration>); 5] = [
        ("spark.network.timeout", TransportConf::connection_timeout, Some(secs(120))),
        ("spark.shuffle.io.connectionTimeout", TransportConf::connection_timeout, Some(secs(120))),
        (
            "spark.shuffle.io.connectionCreationTimeout",
            TransportConf::connection_creation_timeout,
            Some(secs(120)),
        ),
        ("spark.shuffle.io.tcpUserTimeout", TransportConf::tcp_user_timeout, None),
        ("spark.shuffle.io.retryWait", |conf| Some(conf.retry_wait()), Some(secs(5))),
    ];
    for (key, get, default) in keys {
        assert_eq!(get(&TransportConf::new(MODULE)), default, "{key}");
        let units = [
            ("7", secs(7)),
            ("7s", secs(7)),
            ("1500ms", Duration::from_millis(1500)),
            ("9000us", Duration::from_millis(9)),
            ("2m", secs(120)),
            ("2min", secs(120)),
            ("3h", secs(3 * 3600)),
            ("1d", secs(86400)),
            (" 8S ", secs(8)),
            ("5 s", secs(5)),
        ];
        for (value, expected) in units {
            assert_eq!(get(&with(key, value)), Some(expected), "{key}={value}");
        }
        for wrong in
            ["soon", "", "s", "1.5s", "1y", "99999999999999999999s", "9223372036854775807d", "1s2"]
        {
            assert_rejected(key, wrong, "a whole number with us, ms, s, m, min, h or d");
        }
        if key != "spark.shuffle.io.retryWait" {
            for none in ["0", "-1", "-5min"] {
                assert_eq!(get(&with(key, none)), None, "{key}={none}");
            }
        }
    }
}

#[test]
fn timeouts_default_to_each_other() {
    let conf = conf(&[("spark.network.timeout", "7s")]);
    assert_eq!(conf.connection_timeout(), Some(secs(7)));
    assert_eq!(conf.connection_creation_timeout(), Some(secs(7)));
    assert_eq!(conf.tcp_user_timeout(), None, "the system's");
    let conf = conf.with("spark.shuffle.io.connectionTimeout", "3s").unwrap();
    assert_eq!(conf.connection_timeout(), Some(secs(3)));
    assert_eq!(conf.connection_creation_timeout(), Some(secs(3)));
    let conf = conf.with("spark.shuffle.io.connectionCreationTimeout", "0").unwrap();
    let conf = conf.with("spark.shuffle.io.tcpUserTimeout", "1s").unwrap();
    assert_eq!(conf.connection_timeout(), Some(secs(3)));
    assert_eq!(conf.connection_creation_timeout(), None);
    assert_eq!(conf.tcp_user_timeout(), Some(secs(1)));
    let conf = conf.with("spark.shuffle.io.connectionTimeout", "-1").unwrap();
    assert_eq!(conf.connection_timeout(), None);
}

#[test]
fn sizes_are_parsed_with_units() {
    type Get = fn(&TransportConf) -> Option<u64>;
    let keys: [(&str, Get, Option<u64>); 4] = [
        (
            "spark.shuffle.io.receiveBuffer",
            |conf| conf.receive_buffer().map(|size| size as u64),
            None,
        ),
        ("spark.shuffle.io.sendBuffer", |conf| conf.send_buffer().map(|size| size as u64), None),
        ("spark.shuffle.io.maxRequestSize", |conf| Some(conf.max_request_size()), Some(256 << 20)),
        (
            "spark.shuffle.io.maxWriteQueueSize",
            |conf| Some(conf.max_write_queue_size()),
            Some(64 << 20),
        ),
    ];
    for (key, get, default) in keys {
        assert_eq!(get(&TransportConf::new(MODULE)), default, "{key}");
        let units = [
            ("123", 123),
            ("123b", 123),
            ("5k", 5 << 10),
            ("5kb", 5 << 10),
            ("5m", 5 << 20),
            ("5 MB", 5 << 20),
            ("1g", 1 << 30),
            ("1gb", 1 << 30),
        ];
        for (value, expected) in units {
            assert_eq!(get(&with(key, value)), Some(expected), "{key}={value}");
        }
        for wrong in ["big", "", "k", "1.5m", "1e", "99999999p", "99999999999999999999"] {
            assert_rejected(key, wrong, "k, m, g, t or p");
        }
    }
    for key in ["receiveBuffer", "sendBuffer"] {
        let key = format!("spark.shuffle.io.{key}");
        for none in ["0", "-1"] {
            assert_eq!(
                (with(&key, none).receive_buffer(), with(&key, none).send_buffer()),
                (None, None)
            );
        }
    }
    for key in ["maxRequestSize", "maxWriteQueueSize"] {
        for wrong in ["0", "-1", "-5m"] {
            assert_rejected(&format!("spark.shuffle.io.{key}"), wrong, "positive");
        }
    }
    let queue = |value| with("spark.shuffle.io.maxWriteQueueSize", value).max_write_queue_size();
    assert_eq!(
        (queue("2t"), queue("3tb"), queue("1p"), queue("1pb")),
        (2 << 40, 3 << 40, 1 << 50, 1 << 50)
    );
    // No frame can be longer than this.
    assert_eq!(with("spark.shuffle.io.maxRequestSize", "1t").max_request_size(), (1 << 31) - 2);
}

#[test]
fn counts_and_switches_are_parsed() {
    let default = TransportConf::new(MODULE);
    assert_eq!(default.module(), MODULE);
    assert_eq!(default.backlog(), 1024);
    for (value, expected) in [("-1", 1024), ("0", 1024), ("1", 1), ("77", 77)] {
        assert_eq!(with("spark.shuffle.io.backLog", value).backlog(), expected);
    }
    assert_rejected("spark.shuffle.io.backLog", "many", "a whole number");

    assert_eq!(default.connections_per_peer(), 1);
    assert_eq!(with("spark.shuffle.io.numConnectionsPerPeer", "8").connections_per_peer(), 8);
    for wrong in ["0", "-1", "few", "100000"] {
        assert_rejected("spark.shuffle.io.numConnectionsPerPeer", wrong, "a whole number above 0");
    }

    assert_eq!(default.max_retries(), 3);
    assert_eq!(with("spark.shuffle.io.maxRetries", "0").max_retries(), 0);
    for wrong in ["-1", "4294967296", "x"] {
        let error =
            TransportConf::new(MODULE).with("spark.shuffle.io.maxRetries", wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("spark.shuffle.io.maxRetries"), "{error}");
        assert!(error.to_string().contains(wrong), "{error}");
    }

    assert!(default.lazy_fd() && !default.tcp_keep_alive());
    assert!(!with("spark.shuffle.io.lazyFD", "False").lazy_fd());
    assert!(with("spark.shuffle.io.enableTcpKeepAlive", "true").tcp_keep_alive());
    for key in ["spark.shuffle.io.lazyFD", "spark.shuffle.io.enableTcpKeepAlive"] {
        for wrong in ["yes", "1", ""] {
            assert_rejected(key, wrong, "true or false");
        }
    }

    assert_eq!(default.max_chunks_being_transferred(), (1 << 63) - 1);
    assert_eq!(
        with("spark.shuffle.maxChunksBeingTransferred", "5").max_chunks_being_transferred(),
        5
    );
    for wrong in ["0", "-1", "lots", "9223372036854775808"] {
        assert_rejected("spark.shuffle.maxChunksBeingTransferred", wrong, "a whole number above 0");
    }
}

/// A complete Spark configuration can be passed: unknown keys are ignored.
/// Returns the setting and the value type in each row of the settings table.
fn documented_settings(table: &str) -> Vec<(String, String)> {
    let rows = table.lines().filter(|row| row.starts_with("| `spark."));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let key = |cell: &str| cell.trim_matches('`').replace("<m>", "shuffle");
    cells.map(|cells| (key(cells[1]), cells[2].to_owned())).collect()
}

/// The secured modes are read only by builds that have them.
#[cfg(all(feature = "auth", feature = "tls"))]
#[test]
fn every_documented_setting_is_read() {
    let (with_effect, _) = TransportConf::SETTINGS
        .split_once("**Without effect in this crate**")
        .expect("the last table");
    let mut tested = 0;
    for (key, value) in documented_settings(with_effect) {
        let has_no_values = ["path", "text"].contains(&&*value) || key.ends_with("openSslEnabled");
        if has_no_values {
            continue;
        }
        let error = TransportConf::new("shuffle").with(&key, "?").expect_err(&key);
        assert!(error.to_string().contains(&key), "{error}");
        tested += 1;
    }
    assert!(tested > 40, "only {tested} settings were tested");
}

#[test]
fn fault_u2_documented_settings_are_known() {
    for (key, _) in documented_settings(TransportConf::SETTINGS) {
        let key = key.replace('*', "example");
        let value = ["true", "1", "NIO", "16", "AES", "TLS", "AES/CTR/NoPadding", "128"];
        let others = ["PBKDF2WithHmacSHA1", "false"];
        let conf = value
            .iter()
            .chain(&others)
            .find_map(|value| TransportConf::new("shuffle").with(&key, value).ok());
        assert_eq!(conf.expect(&key).unknown_keys(), [], "{key}");
    }
}

#[test]
fn fault_u2_misspelt_keys_are_reported_with_nearest_setting() {
    for (key, nearest) in [
        ("spark.shuffle.io.backlog", Some("spark.shuffle.io.backLog")),
        ("spark.shuffle.io.numConectionsPerPeer", Some("spark.shuffle.io.numConnectionsPerPeer")),
        ("spark.shuffle.io.completelyDifferent", None),
        ("spark.shuffle.maxChunksBeingTransfered", Some("spark.shuffle.maxChunksBeingTransferred")),
        ("spark.network.timeot", Some("spark.network.timeout")),
        ("spark.network.crypto.enable", Some("spark.network.crypto.enabled")),
        ("spark.authentcate", Some("spark.authenticate")),
        ("spark.ssl.rpc.trustStorePasword", Some("spark.ssl.rpc.trustStorePassword")),
    ] {
        let conf = TransportConf::new("shuffle").with(key, "1").expect(key);
        let [unknown] = conf.unknown_keys() else { panic!("{key}: {:?}", conf.unknown_keys()) };
        assert_eq!((&*unknown.key, unknown.nearest.as_deref()), (key, nearest));
        assert!(
            unknown.to_string().contains(key) && !unknown.to_string().ends_with("; did you mean")
        );
    }
}

#[test]
fn fault_u2_keys_of_other_parts_of_spark_are_not_reported() {
    for key in [
        "spark.shuffle.compress",
        "spark.shuffle.service.enabled",
        "spark.shuffle.sort.bypassMergeThreshold",
        "spark.rpc.io.backlog",
        "spark.network.timeoutInterval",
        "spark.executor.memory",
        "other.key",
        "",
    ] {
        let conf = TransportConf::new("shuffle").with(key, "1").expect(key);
        assert_eq!(conf.unknown_keys(), [], "{key}");
    }
}

#[test]
fn load_prefers_overrides_to_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "# settings\nspark.shuffle.io.backLog = 7\nspark.shuffle.io.maxRetries 8\n";
    std::fs::write(file.path(), text).expect("written");
    let overrides = [("spark.shuffle.io.maxRetries", "9")];
    let conf = TransportConf::load("shuffle", Some(file.path()), overrides).expect("valid");
    assert_eq!((conf.backlog(), conf.max_retries()), (7, 9));
    std::fs::write(file.path(), "spark.shuffle.io.backLog many").expect("written");
    let none: [(&str, &str); 0] = [];
    let error = TransportConf::load("shuffle", Some(file.path()), none).expect_err("not a number");
    assert!(error.to_string().contains("spark.shuffle.io.backLog"), "{error}");
}

#[test]
fn keys_of_other_modules_are_ignored() {
    let conf = conf(&[
        ("spark.rpc.io.connectionTimeout", "nonsense"),
        ("spark.shuffle2.io.connectionTimeout", "nonsense"),
        ("spark.shuffle.io.serverThreads", "nonsense"),
        ("spark.shuffle.io.preferDirectBufs", "nonsense"),
        ("spark.executor.memory", "4g"),
        ("shuffle.io.connectionTimeout", "nonsense"),
        ("", ""),
    ]);
    assert_eq!(conf.connection_timeout(), Some(secs(120)));
    // The same key of the other module.
    let rpc =
        TransportConf::from_settings("rpc", [("spark.rpc.io.connectionTimeout", "1s")]).unwrap();
    assert_eq!(rpc.connection_timeout(), Some(secs(1)));
    // The later of two values counts.
    let twice =
        [("spark.rpc.io.connectionTimeout", "1s"), ("spark.rpc.io.connectionTimeout", "2s")];
    assert_eq!(
        TransportConf::from_settings("rpc", twice).unwrap().connection_timeout(),
        Some(secs(2))
    );
}

fn value(named: &[(String, u64)], name: &str) -> u64 {
    named.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[tokio::test(flavor = "multi_thread")]
async fn met_01_metrics_follow_requests_and_connections() {
    let kept = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    let file = file_of(&pattern(200_000, 1));
    let path = file.path().to_owned();
    let (answer, answered) = tokio::sync::oneshot::channel::<()>();
    let answered = Mutex::new(Some(answered));
    let handler = Handler::new()
        .on_rpc(move |_, message, callback| match &message[..] {
            b"keep" => keep.lock().push(callback),
            _ => callback.reply(message),
        })
        .on_chunk_later(move |_, _| {
            let answered = answered.lock().take();
            let path = path.clone();
            async move {
                if let Some(answered) = answered {
                    answered.await?;
                }
                Ok(ManagedBuffer::file(path, 0..200_000))
            }
        });
    let context = TransportContext::new(TransportConf::new("files"), handler);
    let client_context = TransportContext::new(TransportConf::new("blocks"), Handler::new());
    let pair = pair_of(context, client_context).await;
    let (server, client) = (pair.context.metrics(), pair.client_context.metrics());
    let (server, client) = (server.server(), client.client());
    assert_eq!((server.prefix(), client.prefix()), ("files-server", "blocks-client"));

    let rpcs: Vec<_> = (0..3).map(|_| pair.client.send_rpc("keep")).collect();
    let chunk = pair.client.fetch_chunk(1, 0);
    until(|| server.snapshot().active_requests == 3).await;
    until(|| client.snapshot().pending_requests == 4).await;
    until(|| server.snapshot().chunks_being_transferred == 1).await;
    let named = server.named_values();
    assert!(named.iter().all(|(name, _)| name.starts_with("files-server.")), "{named:?}");
    assert_eq!(value(&named, "files-server.connections"), 1);
    assert_eq!(value(&named, "files-server.connectionsTotal"), 1);
    assert_eq!(value(&named, "files-server.activeRequests"), 3);
    assert_eq!(value(&named, "files-server.pendingRequests"), 0);
    assert_eq!(value(&named, "files-server.chunksBeingTransferred"), 1);
    let named = client.named_values();
    assert!(named.iter().all(|(name, _)| name.starts_with("blocks-client.")), "{named:?}");
    assert_eq!(value(&named, "blocks-client.pendingRequests"), 4);
    assert_eq!(value(&named, "blocks-client.activeRequests"), 0);

    std::mem::take(&mut *kept.lock()).into_iter().for_each(|callback| callback.reply("kept"));
    answer.send(()).unwrap();
    assert_eq!(within(chunk).await.unwrap().len(), 200_000);
    for rpc in rpcs {
        assert_eq!(within(rpc).await.unwrap(), "kept");
    }
    // All bytes that one side wrote were read by the other.
    until(|| {
        let (server, client) = (server.snapshot(), client.snapshot());
        server.sent_bytes == client.received_bytes && server.received_bytes == client.sent_bytes
    })
    .await;
    let frames = 8 + 13 + 200_000 + 3 * (8 + 13 + 4);
    assert_eq!(client.snapshot().received_bytes, frames);
    // Gauges return to 0, counters stay, and an error is counted by its kind.
    pair.client.fetch_chunk(1, 1).await.unwrap();
    drop(pair.server);
    within(pair.client.closed()).await;
    until(|| {
        [server.snapshot(), client.snapshot()].iter().all(|now| {
            [
                now.connections,
                now.pending_requests,
                now.active_requests,
                now.write_queue_bytes,
                now.chunks_being_transferred,
            ] == [0; 5]
        })
    })
    .await;
    assert_eq!((server.snapshot().connections_total, client.snapshot().connections_total), (1, 1));
    let address = pair.client.peer_addr();
    // The listener closes when its task notices.
    until(|| std::net::TcpStream::connect(address).is_err()).await;
    within(pair.factory.create_client(address)).await.unwrap_err();
    assert_eq!(value(&client.named_values(), "blocks-client.failures.Connect"), 1);
    assert!(server.named_values().iter().all(|(name, _)| !name.contains("failures")));
}

/// A chunk that the stream manager never returns is dropped with its connection.
#[tokio::test]
async fn chunk_that_never_completes_is_dropped_with_its_connection() {
    let (held, mut dropped) = tokio::sync::mpsc::channel::<()>(1);
    let held = Mutex::new(Some(held));
    let handler = Handler::new().on_chunk_later(move |_, _| {
        let held = held.lock().take();
        async move {
            let _held = held;
            std::future::pending().await
        }
    });
    let pair = pair(handler).await;
    let chunk = pair.client.fetch_chunk(1, 0);
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred == 1).await;
    pair.client.close();
    assert_eq!(within(chunk).await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(within(dropped.recv()).await, None, "its future must be dropped");
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred == 0).await;
}

/// Closes a connection with pending requests of all kinds and an unread body.
#[tokio::test(flavor = "multi_thread")]
async fn gauges_return_to_zero_when_connection_closes_early() {
    let handler = Handler::new()
        .on_rpc({
            let kept = Mutex::new(Vec::new());
            move |_, _, callback| kept.lock().push(callback)
        })
        .on_chunk_later(|_, index| async move {
            if index == 0 {
                std::future::pending().await
            } else {
                Ok(ManagedBuffer::from(vec![0; 16 << 20]))
            }
        })
        .on_stream(|_| Ok(Some(vec![0; 32 << 20].into())));
    let pair = pair(handler).await;
    let stream = within(pair.client.stream("unread")).await.unwrap();
    let rpcs: Vec<_> = (0..10).map(|_| pair.client.send_rpc("never answered")).collect();
    let chunks: Vec<_> = [1, 2, 0, 3, 4].map(|index| pair.client.fetch_chunk(1, index)).into();
    until(|| pair.context.metrics().server().snapshot().active_requests == 10).await;
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred >= 5).await;
    drop(pair.server);
    until(|| {
        let now = pair.context.metrics().server().snapshot();
        (now.connections, now.active_requests, now.write_queue_bytes) == (0, 0, 0)
    })
    .await;
    drop(stream);
    for outcome in within(futures::future::join_all(rpcs)).await {
        outcome.unwrap_err();
    }
    for outcome in within(futures::future::join_all(chunks)).await {
        outcome.unwrap_err();
    }
    until(|| {
        let now = pair.client_context.metrics().client().snapshot();
        (now.connections, now.pending_requests, now.write_queue_bytes) == (0, 0, 0)
    })
    .await;
    until(|| pair.context.metrics().server().snapshot().chunks_being_transferred == 0).await;
}

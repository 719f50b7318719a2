//! Registrations, local directories, removals and the diagnosis of corrupt blocks.

use std::time::Duration;

use network_common::ErrorKind;
use network_shuffle::client::{
    BlockClientConf, BlockError, BlockLocation, FetchTarget, block_checksum,
};
use network_shuffle::protocol::{BlockId, CorruptionCause};

use crate::server::{Answer, BlockServer, block, client, collect, text, within};
use crate::support::{self, EXEC, Executor};

#[tokio::test]
async fn bc_06_registered_executor_is_served_and_its_directories_are_known() {
    let service = support::start(&[]).await;
    let (executor, client) = (Executor::new(3), client(&[]));
    let location = BlockLocation::new(service.local_addr(), EXEC);
    client.register(&location, executor.info()).await.unwrap();
    let dirs = client.host_local_dirs(service.local_addr(), [EXEC]).await.unwrap();
    assert_eq!(dirs.len(), 1);
    assert_eq!(dirs[EXEC], executor.info().local_dirs);
    let error = client.host_local_dirs(service.local_addr(), ["other"]).await.unwrap_err();
    assert!(text(&error).contains("not registered"), "{error:#}");
    // The connection of the registration is closed, and the other one is pooled.
    let connections = || service.transport_metrics().server().snapshot().connections;
    support::eventually("one connection is open", || connections() == 1).await;
}

#[tokio::test]
async fn bc_06_removed_blocks_are_counted_and_gone() {
    let service = support::start(&[]).await;
    let (executor, client) = (Executor::new(1), client(&[]));
    let location = BlockLocation::new(service.local_addr(), EXEC);
    client.register(&location, executor.info()).await.unwrap();
    let path = executor.write("rdd_3_1", b"cached");
    let blocks = [1, 2].map(|split_index| BlockId::Rdd { rdd_id: 3, split_index });
    assert_eq!(client.remove_blocks(&location, blocks).await.unwrap(), 1);
    assert!(!path.exists());
    let unknown = BlockLocation::new(service.local_addr(), "other");
    let error = client.remove_blocks(&unknown, blocks).await.unwrap_err();
    assert!(text(&error).contains("not registered"), "{error:#}");
}

#[tokio::test]
async fn bc_06_registration_without_answer_times_out_and_names_setting() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    // The kernel accepts its connections, and no program reads them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let location = BlockLocation::new(silent.local_addr().unwrap(), EXEC);
    let settings = [
        ("spark.shuffle.registration.timeout", "100"),
        ("spark.shuffle.registration.maxAttempts", "1"),
    ];
    let info = Executor::new(1).info();
    let error = within(client(&settings).register(&location, info.clone())).await.unwrap_err();
    let BlockError::Timeout { timeout, .. } = error else { panic!("{error:?}") };
    assert_eq!(timeout, Duration::from_millis(100));
    assert!(text(&error).contains("spark.shuffle.registration.timeout"), "{error:#}");
    // A server that refuses it.
    let refused = client(&settings).register(&server.location(), info).await.unwrap_err();
    let BlockError::Transport { source, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(source.kind(), ErrorKind::Remote);
}

#[tokio::test(start_paused = true)]
async fn bc_06_registration_is_repeated_at_most_max_attempts_times() {
    // Nothing listens on port 1, so that the paused clock only waits for the attempts.
    let location = BlockLocation::new(("127.0.0.1", 1), EXEC);
    let start = tokio::time::Instant::now();
    let error = client(&[]).register(&location, Executor::new(1).info()).await.unwrap_err();
    let BlockError::Transport { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), ErrorKind::Connect);
    let seconds = start.elapsed().as_secs();
    assert!((10..15).contains(&seconds), "three attempts took {seconds} s");
}

#[tokio::test]
async fn bc_07_corrupt_block_is_diagnosed_by_its_server() {
    let service = support::start(&[]).await;
    let (executor, client) = (Executor::new(1), client(&[]));
    let location = BlockLocation::new(service.local_addr(), EXEC);
    client.register(&location, executor.info()).await.unwrap();
    executor.write_map(0, &[b"Wikipedia"]);
    let right = block_checksum("ADLER32", b"Wikipedia").unwrap();
    executor.write("shuffle_0_0_0.checksum.ADLER32", &i64::from(right).to_be_bytes());
    let diagnose = |block, checksum, algorithm| {
        client.diagnose_corruption(&location, block, checksum, algorithm)
    };
    let cause = diagnose(block(0, 0), right, "ADLER32").await;
    assert_eq!(cause, CorruptionCause::ChecksumVerifyPass);
    let cause = diagnose(block(0, 0), 5, "ADLER32").await;
    assert_eq!(cause, CorruptionCause::NetworkIssue);
    let cause = diagnose(block(0, 0), 5, "MD5").await;
    assert_eq!(cause, CorruptionCause::UnsupportedChecksumAlgorithm);
    executor.write_map(0, &[b"Wikipedi0"]);
    assert_eq!(diagnose(block(0, 0), 5, "ADLER32").await, CorruptionCause::DiskIssue);
}

#[test]
fn bc_07_checksums_have_the_check_values_of_their_algorithms() {
    for (algorithm, expected) in
        [("ADLER32", 0x091e_01de), ("CRC32", 0xcbf4_3926), ("CRC32C", 0xe306_9283)]
    {
        assert_eq!(block_checksum(algorithm, b"123456789"), Some(expected), "{algorithm}");
    }
}

#[tokio::test]
async fn bc_07_failed_diagnosis_is_unknown_issue() {
    let server = BlockServer::start(|_| Answer::Serve).await;
    let client = client(&[]);
    let unreachable = BlockLocation::new(("127.0.0.1", 1), EXEC);
    let rdd = BlockId::Rdd { rdd_id: 0, split_index: 0 };
    for (location, block) in
        [(&server.location(), block(0, 0)), (&unreachable, block(0, 0)), (&server.location(), rdd)]
    {
        let cause = within(client.diagnose_corruption(location, block, 5, "ADLER32")).await;
        assert_eq!(cause, CorruptionCause::UnknownIssue);
    }
}

#[tokio::test]
async fn bc_06_unregistered_executor_fails_blocks_with_text_of_service() {
    let service = support::start(&[]).await;
    let location = BlockLocation::new(service.local_addr(), "other");
    let fetch = client(&[]).fetch_blocks(&location, [block(0, 0)], FetchTarget::Memory);
    let error = text(collect(fetch).await[0].1.as_ref().unwrap_err());
    assert!(error.contains("Executor is not registered (appId=app-1, execId=other)"), "{error}");
}

#[test]
fn bc_11_settings_have_names_units_and_defaults_of_spark() {
    let conf = BlockClientConf::default();
    assert!(!conf.use_old_fetch_protocol() && !conf.sasl_enable_retries());
    assert_eq!(conf.max_size_in_flight(), 48 << 20);
    assert_eq!(conf.max_reqs_in_flight(), 2_147_483_647);
    assert_eq!(conf.max_blocks_in_flight_per_address(), 2_147_483_647);
    assert_eq!(conf.max_remote_block_size_fetch_to_mem(), 200 << 20);
    assert_eq!(conf.registration_timeout(), Duration::from_secs(5));
    assert_eq!(conf.registration_max_attempts(), 3);
    let conf = BlockClientConf::from_settings([
        ("spark.shuffle.registration.timeout", "2500"),
        ("spark.reducer.maxSizeInFlight", "1g"),
        ("spark.local.dir", "/data1, /data2"),
        ("spark.shuffle.registration.maxAttemps", "4"),
        ("spark.executor.memory", "4g"),
    ])
    .unwrap();
    assert_eq!(conf.registration_timeout(), Duration::from_millis(2500));
    assert_eq!(conf.max_size_in_flight(), 1 << 30);
    assert_eq!(conf.local_dir().to_str(), Some("/data1"));
    let [unknown] = conf.unknown_keys() else { panic!("{:?}", conf.unknown_keys()) };
    assert!(unknown.to_string().contains("spark.shuffle.registration.maxAttempts"), "{unknown}");
    let conf = conf.with("spark.shuffle.registration.timeout", "2min").unwrap();
    assert_eq!(conf.registration_timeout(), Duration::from_secs(120));
}

#[test]
fn bc_11_invalid_values_name_their_setting() {
    for (key, value) in [
        ("spark.shuffle.useOldFetchProtocol", "yes"),
        ("spark.reducer.maxSizeInFlight", "0"),
        ("spark.reducer.maxReqsInFlight", "-1"),
        ("spark.reducer.maxBlocksInFlightPerAddress", "2147483648"),
        ("spark.network.maxRemoteBlockSizeFetchToMem", "-1"),
        ("spark.local.dir", ""),
        ("spark.shuffle.registration.timeout", "0"),
        ("spark.shuffle.registration.maxAttempts", "0"),
        ("spark.shuffle.sasl.enableRetries", "1"),
    ] {
        let error = BlockClientConf::default().with(key, value).unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

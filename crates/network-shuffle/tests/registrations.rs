//! Registrations of executors: the store, the checks, and the end of executors.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use network_common::TransportConf;
use network_shuffle::protocol::{
    BlockTransferMessage, CorruptionCause, ExecutorShuffleInfo, StringList,
};
use network_shuffle::{ServiceError, ShuffleService, ShuffleServiceConf};
use support::*;

/// Starts a service whose store is in `dir`.
async fn start_with_store(dir: &Path, required: bool) -> Result<ShuffleService, ServiceError> {
    let required = required.to_string();
    let settings = [
        ("spark.shuffle.service.host", "127.0.0.1"),
        ("spark.shuffle.service.port", "0"),
        ("spark.shuffle.service.db.dir", path_text(dir)),
        ("spark.shuffle.service.db.required", &required),
    ];
    let conf = ShuffleServiceConf::from_settings(settings).unwrap();
    ShuffleService::start(&conf, TransportConf::new("shuffle"), None).await
}

async fn stop(service: ShuffleService) {
    service.close(Duration::from_secs(5)).await;
}

fn register(app_id: &str, exec_id: &str, info: ExecutorShuffleInfo) -> BlockTransferMessage {
    let (app_id, exec_id) = (app_id.to_owned(), exec_id.to_owned());
    BlockTransferMessage::RegisterExecutor { app_id, exec_id, info }
}

#[tokio::test]
async fn ess_07_registrations_survive_restart() {
    let (store, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let service = start_with_store(store.path(), true).await.unwrap();
    executor.write_map(0, &[b"block"]);
    executor.register(&connect(&service).await).await;
    stop(service).await;

    let service = start_with_store(store.path(), true).await.unwrap();
    assert_eq!(service.metrics().registered_executors, 1);
    let client = connect(&service).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "block");
    service.application_removed(APP, false).await.unwrap();
    stop(service).await;

    let service = start_with_store(store.path(), true).await.unwrap();
    assert_eq!(service.metrics().registered_executors, 0);
}

#[tokio::test]
async fn ess_07_removed_application_keeps_others_with_similar_ids() {
    let (store, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let service = start_with_store(store.path(), true).await.unwrap();
    let client = connect(&service).await;
    for app_id in ["app", "app-1", "app-10", "app-1\0", "b"] {
        let message = register(app_id, EXEC, executor.info());
        client.send_rpc(message.encode()).await.unwrap();
    }
    service.application_removed("app-1", false).await.unwrap();
    stop(service).await;
    let service = start_with_store(store.path(), true).await.unwrap();
    assert_eq!(service.metrics().registered_executors, 4);
}

#[tokio::test]
async fn ess_08_damaged_store_is_error_or_is_set_aside() {
    let (store, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let service = start_with_store(store.path(), true).await.unwrap();
    executor.register(&connect(&service).await).await;
    stop(service).await;
    let file = store.path().join("registeredExecutors.redb");
    let intact = fs::read(&file).unwrap();

    let mut variants = vec![b"this is no database".to_vec(), intact[..intact.len() / 3].to_vec()];
    for position in [0, 70, 130, 4200, 8300, 12400] {
        let mut changed = intact.clone();
        if let Some(bytes) = changed.get_mut(position..position + 60) {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            variants.push(changed);
        }
    }
    for (index, damaged) in variants.iter().enumerate() {
        fs::write(&file, damaged).unwrap();
        match start_with_store(store.path(), true).await {
            Err(ServiceError::Store(error)) => {
                let text = error.to_string();
                assert!(text.contains(path_text(&file)), "{text}");
                assert!(text.contains("spark.shuffle.service.db.required"), "{text}");
            }
            Err(error) => panic!("{index}: {error}"),
            // Bytes that redb does not use, or that it restored.
            Ok(service) => {
                stop(service).await;
                continue;
            }
        }
        let service = start_with_store(store.path(), false).await.unwrap();
        assert_eq!(service.metrics().registered_executors, 0, "{index}");
        executor.register(&connect(&service).await).await;
        stop(service).await;
        assert!(store.path().join("registeredExecutors.redb.damaged").exists());
        let service = start_with_store(store.path(), true).await.unwrap();
        assert_eq!(service.metrics().registered_executors, 1, "{index}");
        stop(service).await;
    }
}

#[tokio::test]
async fn ess_08_unusable_directory_is_error_or_warning() {
    let parent = tempfile::tempdir().unwrap();
    let blocked = parent.path().join("file");
    fs::write(&blocked, "not a directory").unwrap();
    let shared = parent.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777)).unwrap();
    for dir in [&blocked, &shared] {
        let error = start_with_store(dir, true).await.unwrap_err();
        assert!(error.to_string().contains("spark.shuffle.service.db.dir"), "{error}");
        let (service, executor) = (start_with_store(dir, false).await.unwrap(), Executor::new(1));
        executor.register(&connect(&service).await).await;
        let metrics = service.metrics();
        assert_eq!((metrics.registered_executors, metrics.unstored_registrations), (1, 1));
    }
}

#[tokio::test]
async fn ess_08_second_service_cannot_use_the_same_store() {
    let store = tempfile::tempdir().unwrap();
    let first = start_with_store(store.path(), true).await.unwrap();
    assert!(matches!(start_with_store(store.path(), true).await, Err(ServiceError::Store(_))));
    let second = start_with_store(store.path(), false).await.unwrap();
    Executor::new(1).register(&connect(&first).await).await;
    drop(second);
    stop(first).await;
    let service = start_with_store(store.path(), true).await.unwrap();
    assert_eq!(service.metrics().registered_executors, 1);
}

#[tokio::test]
async fn ess_08_store_that_becomes_usable_gets_all_registrations() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    fs::write(&dir, "not a directory").unwrap();
    let (service, executor) = (start_with_store(&dir, false).await.unwrap(), Executor::new(1));
    let client = connect(&service).await;
    client.send_rpc(register(APP, "first", executor.info()).encode()).await.unwrap();
    fs::remove_file(&dir).unwrap();
    // The store is opened again at most once in 5 s.
    let unstored = || service.metrics().unstored_registrations;
    let mut last = unstored();
    for attempt in 0.. {
        assert!(attempt < 100);
        client.send_rpc(register(APP, "second", executor.info()).encode()).await.unwrap();
        if std::mem::replace(&mut last, unstored()) == unstored() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop(service).await;
    let service = start_with_store(&dir, true).await.unwrap();
    assert_eq!(service.metrics().registered_executors, 2);
}

#[tokio::test]
async fn ess_15_invalid_registrations_are_rejected() {
    let service = start(&[("spark.shuffle.service.maxRegistrationsSize", "2k")]).await;
    let client = connect(&service).await;
    let long = format!("/{}", "x".repeat(2000));
    for (info, expected) in [
        (ExecutorShuffleInfo::new([""; 0], 64, ""), "at least one local directory"),
        (ExecutorShuffleInfo::new(["/a"], 0, ""), "subDirsPerLocalDir must be positive, not 0"),
        (ExecutorShuffleInfo::new(["/a"], -7, ""), "subDirsPerLocalDir must be positive, not -7"),
        (ExecutorShuffleInfo::new(["/a", "b"], 64, ""), "'b' is not an absolute path"),
        (ExecutorShuffleInfo::new(["", "/a"], 64, ""), "'' is not an absolute path"),
        (ExecutorShuffleInfo::new(["/a\0b"], 64, ""), "is not an absolute path"),
        (ExecutorShuffleInfo::new([long], 64, ""), "spark.shuffle.service.maxRegistrationsSize"),
        (
            ExecutorShuffleInfo::new(["/a"], 64, "x".repeat(1 << 20)),
            "exceeds the limit of 1048576 bytes",
        ),
    ] {
        let error = client.send_rpc(register(APP, EXEC, info).encode()).await.unwrap_err();
        assert!(text(&error).contains(expected), "{error:#} lacks {expected}");
    }
    assert_eq!(service.metrics().registered_executors, 0);
    // An executor that registers again replaces its entry.
    let executor = Executor::new(1);
    for _ in 0..100 {
        executor.register(&client).await;
    }
    assert_eq!(service.metrics().registered_executors, 1);
}

#[tokio::test]
async fn ess_15_local_dirs_are_checked_if_spark_local_dir_is_set() {
    let (inside, outside) = (Executor::new(1), Executor::new(1));
    let roots = format!("/nowhere,{}", inside.root.path().display());
    let service = start(&[("spark.local.dir", &roots)]).await;
    let client = connect(&service).await;
    inside.register(&client).await;
    std::os::unix::fs::symlink(&outside.dirs[0], inside.root.path().join("link")).unwrap();
    let root = path_text(inside.root.path());
    for dir in [
        path_text(&outside.dirs[0]).to_owned(),
        format!("{root}/link"),
        format!("{root}/blockmgr-0/../../x"),
        format!("{root}/missing"),
        root.to_owned(),
        "/".to_owned(),
    ] {
        let info = ExecutorShuffleInfo::new([dir.clone()], 64, "");
        let error = client.send_rpc(register(APP, EXEC, info).encode()).await.unwrap_err();
        assert!(text(&error).contains("spark.local.dir"), "{dir}: {error:#}");
    }
}

#[tokio::test]
async fn ess_14_application_removed_deletes_its_directories() {
    let (service, executor, other) = (start(&[]).await, Executor::new(2), Executor::new(1));
    let client = connect(&service).await;
    executor.write_map(0, &[b"block"]);
    executor.register(&client).await;
    let foreign = executor.root.path().join("home");
    fs::create_dir(&foreign).unwrap();
    let info = ExecutorShuffleInfo::new([path_text(&foreign)], 64, "");
    client.send_rpc(register(APP, "foreign", info).encode()).await.unwrap();
    client.send_rpc(other.registration_as("app-2", EXEC).encode()).await.unwrap();

    service.application_removed(APP, true).await.unwrap();
    eventually("the directories are deleted", || executor.dirs.iter().all(|dir| !dir.exists()))
        .await;
    assert!(foreign.exists() && other.dirs[0].exists());
    assert_eq!(service.metrics().registered_executors, 1);
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    let error = client.fetch_chunk(stream, 0).await.unwrap_err();
    assert!(text(&error).contains("Executor is not registered"), "{error}");
}

#[tokio::test]
async fn ess_14_executor_removed_keeps_files_that_are_served() {
    for keep_rdds in [false, true] {
        let setting = keep_rdds.to_string();
        let service = start(&[("spark.shuffle.service.fetch.rdd.enabled", &setting)]).await;
        let executor = Executor::new(1);
        executor.register(&connect(&service).await).await;
        executor.write_map(0, &[b"block"]);
        let kept = executor.write("shuffle_0_0_0.checksum.ADLER32", b"");
        let (rdd, temporary) =
            (executor.write("rdd_0_0", b""), executor.write("temp_shuffle_1", b""));
        // A link is deleted, not followed.
        let outside = executor.root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&outside, executor.dirs[0].join("link")).unwrap();

        service.executor_removed(APP, EXEC);
        eventually("the temporary file is deleted", || !temporary.exists()).await;
        eventually("the partition is deleted", || rdd.exists() == keep_rdds).await;
        assert!(kept.exists() && outside.join("file").exists());
        assert!(executor.path("shuffle_0_0_0.index").exists());
        assert_eq!(service.metrics().registered_executors, 1);
    }
}

#[tokio::test]
async fn ess_14_application_without_directories_is_removed() {
    let service = start(&[("spark.shuffle.service.applicationTimeout", "100ms")]).await;
    let (executor, other) = (Executor::new(2), Executor::new(1));
    let client = connect(&service).await;
    executor.register(&client).await;
    client.send_rpc(other.registration_as("app-2", EXEC).encode()).await.unwrap();
    // One directory is enough to keep an application.
    fs::remove_dir_all(&executor.dirs[0]).unwrap();
    fs::remove_dir_all(&other.dirs[0]).unwrap();
    eventually("the application is removed", || service.metrics().registered_executors == 1).await;
    let message = BlockTransferMessage::GetLocalDirsForExecutors {
        app_id: APP.to_owned(),
        exec_ids: StringList::from_iter([EXEC]),
    };
    ask(&client, &message).await.unwrap();
}

async fn diagnose(
    client: &network_common::TransportClient,
    checksum: i64,
    algorithm: &str,
) -> CorruptionCause {
    let message = BlockTransferMessage::DiagnoseCorruption {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        shuffle_id: 0,
        map_id: 0,
        reduce_id: 1,
        checksum,
        algorithm: algorithm.to_owned(),
    };
    match ask(client, &message).await.unwrap() {
        BlockTransferMessage::CorruptionCause { cause } => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ess_12_cause_of_corruption_is_found_by_checksums() {
    let (service, executor) = (start(&[]).await, Executor::new(1));
    let client = connect(&service).await;
    executor.register(&client).await;
    executor.write_map(0, &[b"abc", b"123456789"]);
    assert_eq!(diagnose(&client, 1, "ADLER32").await, CorruptionCause::UnknownIssue);
    // The well-known check values of "123456789".
    for (algorithm, checksum) in
        [("ADLER32", 0x091e_01de_i64), ("CRC32", 0xcbf4_3926), ("CRC32C", 0xe306_9283)]
    {
        let name = format!("shuffle_0_0_0.checksum.{algorithm}");
        let written: Vec<u8> = [7, checksum].iter().flat_map(|sum| sum.to_be_bytes()).collect();
        executor.write(&name, &written);
        let pass = CorruptionCause::ChecksumVerifyPass;
        assert_eq!(diagnose(&client, checksum, algorithm).await, pass, "{algorithm}");
        let network = CorruptionCause::NetworkIssue;
        assert_eq!(diagnose(&client, 1, algorithm).await, network, "{algorithm}");
        executor.write("shuffle_0_0_0.data", b"abc12345678X");
        assert_eq!(diagnose(&client, 1, algorithm).await, CorruptionCause::DiskIssue);
        executor.write("shuffle_0_0_0.data", b"abc");
        assert_eq!(diagnose(&client, 1, algorithm).await, CorruptionCause::UnknownIssue);
        executor.write("shuffle_0_0_0.data", b"abc123456789");
    }
    let unsupported = CorruptionCause::UnsupportedChecksumAlgorithm;
    assert_eq!(diagnose(&client, 1, "MD5").await, unsupported);
    assert_eq!(diagnose(&client, 1, "../../x").await, unsupported);
}

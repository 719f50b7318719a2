//! Authentication: an application reads and changes only what is its own.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod support;

use std::fs;
use std::path::Path;

use network_common::ErrorKind;
use network_shuffle::ShuffleService;
use network_shuffle::protocol::{BlockTransferMessage, IntLists, StringList};
use support::*;

async fn start_with_secrets(dir: &Path) -> ShuffleService {
    start(&[
        ("spark.authenticate", "true"),
        ("spark.network.crypto.enabled", "true"),
        ("spark.shuffle.service.secrets.dir", path_text(dir)),
    ])
    .await
}

#[tokio::test]
async fn ess_04_no_message_reaches_another_application() {
    let secrets = tempfile::tempdir().unwrap();
    fs::write(secrets.path().join(APP), "secret of app-1\n").unwrap();
    fs::write(secrets.path().join("app-2"), "secret of app-2").unwrap();
    let (service, executor) = (start_with_secrets(secrets.path()).await, Executor::new(1));
    executor.write_map(0, &[b"block"]);
    executor.write("rdd_0_0", b"cached");
    let own = connect_as(&service, APP, "secret of app-1").await.unwrap();
    executor.register(&own).await;
    let (stream, _) = open(&own, &fetch_blocks(&[0, 0], &[&[0], &[0]], false)).await.unwrap();
    assert_eq!(own.fetch_chunk(stream, 0).await.unwrap(), "block");

    let other = connect_as(&service, "app-2", "secret of app-2").await.unwrap();
    let (app_id, exec_id) = (APP.to_owned(), EXEC.to_owned());
    let exec_ids = StringList::from_iter([EXEC]);
    for message in [
        executor.registration(),
        open_blocks(&["shuffle_0_0_0"]),
        open_blocks(&["rdd_0_0"]),
        fetch_blocks(&[0], &[&[0]], false),
        remove_blocks(&["rdd_0_0"]),
        BlockTransferMessage::GetLocalDirsForExecutors { app_id: app_id.clone(), exec_ids },
        BlockTransferMessage::DiagnoseCorruption {
            app_id: app_id.clone(),
            exec_id: exec_id.clone(),
            shuffle_id: 0,
            map_id: 0,
            reduce_id: 0,
            checksum: 0,
            algorithm: "CRC32".to_owned(),
        },
        BlockTransferMessage::FinalizeShuffleMerge {
            app_id: app_id.clone(),
            app_attempt_id: 0,
            shuffle_id: 0,
            shuffle_merge_id: 0,
        },
        BlockTransferMessage::FetchShuffleBlockChunks {
            app_id,
            exec_id,
            shuffle_id: 0,
            shuffle_merge_id: 0,
            reduce_ids: vec![0],
            chunk_ids: IntLists::from_iter([vec![0]]),
        },
    ] {
        let error = other.send_rpc(message.encode()).await.unwrap_err();
        let expected = "Client for app-2 not authorized for application app-1.";
        assert!(text(&error).contains(expected), "{message:?}: {error}");
    }
    // Neither does the stream of the other connection.
    let error = other.fetch_chunk(stream, 1).await.unwrap_err();
    assert!(text(&error).contains("is closed"), "{error}");
    assert!(other.stream(&format!("{stream}_1")).await.is_err());
    assert_eq!(own.fetch_chunk(stream, 1).await.unwrap(), "block");
    assert!(executor.path("rdd_0_0").exists());
}

#[tokio::test]
async fn ess_18_wrong_or_unknown_secret_is_rejected() {
    let secrets = tempfile::tempdir().unwrap();
    fs::write(secrets.path().join(APP), "right").unwrap();
    fs::write(secrets.path().join(".hidden"), "right").unwrap();
    fs::create_dir(secrets.path().join("folder")).unwrap();
    let service = start_with_secrets(secrets.path()).await;
    for (app_id, secret) in
        [(APP, "wrong"), ("app-9", "right"), (".hidden", "right"), ("", "right")]
    {
        let error = connect_as(&service, app_id, secret).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bootstrap, "{app_id}");
    }
    connect_as(&service, APP, "right").await.unwrap();
    // A connection without authentication reads nothing.
    let client = connect(&service).await;
    assert!(client.send_rpc(open_blocks(&["shuffle_0_0_0"]).encode()).await.is_err());
}

#[tokio::test]
async fn ess_18_changed_secret_applies_to_new_connections_only() {
    let secrets = tempfile::tempdir().unwrap();
    // As Kubernetes mounts a secret: links through a directory that is replaced.
    let version = |name: &str, secret: &str| {
        let dir = secrets.path().join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(APP), secret).unwrap();
        let next = secrets.path().join("..next");
        std::os::unix::fs::symlink(name, &next).unwrap();
        fs::rename(next, secrets.path().join("..data")).unwrap();
    };
    version("..1", "first");
    std::os::unix::fs::symlink(format!("..data/{APP}"), secrets.path().join(APP)).unwrap();
    let (service, executor) = (start_with_secrets(secrets.path()).await, Executor::new(1));
    let old = connect_as(&service, APP, "first").await.unwrap();
    version("..2", "second");
    let mut attempts = 0;
    while connect_as(&service, APP, "second").await.is_err() {
        attempts += 1;
        assert!(attempts < 200, "the changed secret is not read");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(connect_as(&service, APP, "first").await.is_err());
    executor.register(&old).await;

    fs::remove_file(secrets.path().join(APP)).unwrap();
    let mut attempts = 0;
    while connect_as(&service, APP, "second").await.is_ok() {
        attempts += 1;
        assert!(attempts < 200, "the removed secret is still valid");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    executor.register(&old).await;
}

#[tokio::test]
async fn ess_18_one_secret_can_serve_all_applications() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    fs::write(&file, "shared\n").unwrap();
    for (key, value, secret) in [
        ("spark.authenticate.secret", "shared", "shared"),
        // Spark's applications use the Base64 of all bytes of the file.
        ("spark.authenticate.secret.file", path_text(&file), "c2hhcmVkCg=="),
    ] {
        let service = start(&[
            ("spark.authenticate", "true"),
            ("spark.network.crypto.enabled", "true"),
            (key, value),
        ])
        .await;
        for app_id in [APP, "app-2"] {
            connect_as(&service, app_id, secret).await.unwrap();
        }
        assert!(connect_as(&service, APP, "other").await.is_err());
    }
}

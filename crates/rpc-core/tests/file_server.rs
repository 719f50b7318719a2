//! The file server of an environment: registered files, jars and directories, and paths that it
//! must not serve. The peers are other environments and bare transport clients.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{address, client, server, soon};
use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use rpc_core::{ErrorKind, RpcEnv, RpcError};
use tempfile::TempDir;

fn file(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

async fn content(env: &RpcEnv, uri: &str) -> Result<Vec<u8>, RpcError> {
    let mut download = soon(env.open_channel(uri)).await?;
    let mut all = Vec::new();
    while let Some(piece) = soon(download.next_piece()).await {
        all.extend_from_slice(&piece?);
    }
    assert_eq!((all.len() as u64, download.remaining()), (download.len(), 0));
    Ok(all)
}

/// Connects a transport client, which can request stream ids that are not valid in a URI.
async fn raw_client(env: &RpcEnv) -> TransportClient {
    let context = TransportContext::new(TransportConf::new("files"), NoOpRpcHandler::new());
    let at = address(env);
    context.create_client_factory().create_unmanaged_client((at.host(), at.port())).await.unwrap()
}

#[test]
fn file_server_and_download_are_send() {
    fn is_sync<T: Send + Sync + std::fmt::Debug>() {}
    is_sync::<rpc_core::RpcEnvFileServer>();
    fn is_send<T: Send + std::fmt::Debug>() {}
    is_send::<rpc_core::Download>();
}

#[tokio::test]
async fn rpc_env_34_files_jars_and_directories_are_downloaded() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let files = server.file_server();
    let large: Vec<u8> = (0..9_000_000_u32).map(|i| (i % 251) as u8).collect();
    let contents: [(&str, &[u8]); 6] = [
        ("plain.txt", b"plain"),
        ("some space.txt", b"space"),
        ("100%25 #1?&ü.txt", b"odd"),
        ("back\\slash", b"slash"),
        ("empty", b""),
        ("large", &large),
    ];
    for (name, expected) in contents {
        let uri = soon(files.add_file(file(temp.path(), name, expected))).await.unwrap();
        assert_eq!(content(&client, &uri).await.unwrap(), expected, "{uri}");
    }
    let root = address(&server).to_spark_url();
    let space = soon(files.add_file(temp.path().join("some space.txt"))).await.unwrap();
    assert_eq!(space, format!("{root}/files/some%20space.txt"));
    let odd = soon(files.add_file(temp.path().join("100%25 #1?&ü.txt"))).await.unwrap();
    assert_eq!(odd, format!("{root}/files/100%2525%20%231%3F&%C3%BC.txt"));

    let jar = soon(files.add_jar(file(temp.path(), "a.jar", b"jar"))).await.unwrap();
    assert_eq!(
        (jar.as_str(), content(&client, &jar).await.unwrap()),
        (&*format!("{root}/jars/a.jar"), b"jar".to_vec())
    );

    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(second.path().join("sub")).unwrap();
    file(first.path(), "one", b"1");
    file(&second.path().join("sub"), "two", b"2");
    assert_eq!(
        soon(files.add_directory("/dir1", first.path())).await.unwrap(),
        format!("{root}/dir1")
    );
    let uri = soon(files.add_directory("dir2/", second.path())).await.unwrap();
    assert_eq!(content(&client, &format!("{root}/dir1/one")).await.unwrap(), b"1");
    assert_eq!(content(&client, &format!("{uri}/sub/two")).await.unwrap(), b"2");

    for missing in [
        "/files/missing",
        "/jars/missing",
        "/jars/plain.txt",
        "/dir1/missing",
        "/dir1",
        "/dir2/sub",
        "/",
        "/dir3/one",
    ] {
        let uri = format!("{root}{missing}");
        let error = content(&client, &uri).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileUnavailable, "{error}");
        assert!(error.is_remote() && !error.is_retryable(), "{error:?}");
        let text = format!("{error:#}");
        assert!(text.contains(&uri) && text.contains("not found"), "{text}");
    }
}

#[tokio::test]
async fn rpc_env_34_directory_uri_in_use_is_rejected() {
    let (server, temp) = (server().await, TempDir::new().unwrap());
    let files = server.file_server();
    let first = soon(files.add_directory("/dir1", temp.path())).await.unwrap();
    for uri in [
        "/files",
        "/jars",
        "files/",
        "//jars",
        "/x/../files",
        "/../jars",
        "/files/below",
        "/%66iles",
    ] {
        let error = soon(files.add_directory(uri, temp.path())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert_eq!(error.to_string(), "Directory URI cannot be /files nor /jars.", "{uri}");
    }
    for uri in ["/dir1", "dir1/", "//dir1//", "/./dir1", "/dir2/../dir1", "/dir%31"] {
        let error = soon(files.add_directory(uri, temp.path())).await.unwrap_err();
        assert_eq!(error.to_string(), "URI '/dir1' already registered.", "{uri}");
        assert_eq!(soon(files.add_directory_if_absent(uri, temp.path())).await.unwrap(), first);
    }
    for uri in ["", "/", "/a/.."] {
        assert_eq!(
            soon(files.add_directory(uri, temp.path())).await.unwrap_err().kind(),
            ErrorKind::Config
        );
    }
}

#[tokio::test]
async fn rpc_env_34_add_directory_if_absent_keeps_existing_directory() {
    let (server, client) = (server().await, client().await);
    let (old, new) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    file(old.path(), "name", b"old");
    file(new.path(), "name", b"new");
    let uri = soon(server.file_server().add_directory_if_absent("/dir", old.path())).await.unwrap();
    soon(server.file_server().add_directory_if_absent("/dir", new.path())).await.unwrap();
    assert_eq!(content(&client, &format!("{uri}/name")).await.unwrap(), b"old");
}

#[tokio::test]
async fn rpc_env_34_file_name_is_registered_for_one_path() {
    let (server, client) = (server().await, client().await);
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (first, second) = (file(one.path(), "name", b"1"), file(other.path(), "name", b"2"));
    let files = server.file_server();
    let uri = soon(files.add_file(&first)).await.unwrap();
    // Another path to the same file returns the same URI.
    let detour = one.path().join("..").join(one.path().file_name().unwrap()).join("name");
    assert_eq!(soon(files.add_file(detour)).await.unwrap(), uri);
    let error = soon(files.add_file(&second)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(
        error.to_string(),
        format!(
            "File name was already registered with a different path (old path = {}, new path = {})",
            first.canonicalize().unwrap().display(),
            second.canonicalize().unwrap().display()
        )
    );
    let jar = soon(files.add_jar(&second)).await.unwrap();
    assert!(files.remove_file("name") && !files.remove_file("name"));
    assert_eq!(content(&client, &uri).await.unwrap_err().kind(), ErrorKind::FileUnavailable);
    assert_eq!(content(&client, &jar).await.unwrap(), b"2");
    // The name can be used again.
    soon(files.add_file(&second)).await.unwrap();
    assert_eq!(content(&client, &uri).await.unwrap(), b"2");
    assert!(files.remove_jar("name"));
    assert_eq!(content(&client, &jar).await.unwrap_err().kind(), ErrorKind::FileUnavailable);
}

#[tokio::test]
async fn unsuitable_paths_are_rejected_when_added() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let plain = file(temp.path(), "plain", b"");
    let files = server.file_server();
    let missing = temp.path().join("missing");
    for error in [
        soon(files.add_file(&missing)).await.unwrap_err(),
        soon(files.add_file(temp.path())).await.unwrap_err(),
        soon(files.add_file("/")).await.unwrap_err(),
        soon(files.add_directory("/dir", &plain)).await.unwrap_err(),
        soon(files.add_directory("/dir", &missing)).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with("cannot offer /"), "{error}");
    }
    let error = soon(client.file_server().add_file(&plain)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("client does not listen"), "{error}");
}

#[tokio::test]
async fn directory_uri_can_have_several_segments() {
    let (server, client) = (server().await, client().await);
    let (outer, inner) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    file(outer.path(), "name", b"outer");
    fs::create_dir(outer.path().join("bc")).unwrap();
    file(&outer.path().join("bc"), "name", b"bc");
    file(inner.path(), "name", b"inner");
    let a = soon(server.file_server().add_directory("/a", outer.path())).await.unwrap();
    let b = soon(server.file_server().add_directory("/a/b", inner.path())).await.unwrap();
    assert_eq!(content(&client, &format!("{a}/name")).await.unwrap(), b"outer");
    assert_eq!(content(&client, &format!("{b}/name")).await.unwrap(), b"inner");
    // The path is not below /a/b, although its text begins with it.
    assert_eq!(content(&client, &format!("{a}/bc/name")).await.unwrap(), b"bc");
}

#[tokio::test]
async fn nsm_01_paths_outside_directory_are_not_served() {
    let (server, temp) = (server().await, TempDir::new().unwrap());
    let classes = temp.path().join("classes");
    fs::create_dir_all(classes.join("sub")).unwrap();
    let secret = file(temp.path(), "secret", b"secret");
    file(&classes, "real", b"real");
    let mut within =
        vec!["/classes/real", "classes/real", "/classes/sub/../real", "/classes/./real"];
    let mut outside = vec![
        "/classes/../secret".to_owned(),
        "/classes/../../secret".to_owned(),
        "/classes/sub/../../secret".to_owned(),
        "/classes/..\\secret".to_owned(),
        "/classes/sub\\..\\..\\secret".to_owned(),
        "/classes/%2e%2e/secret".to_owned(),
        "/classes/..%2fsecret".to_owned(),
        "/classes/../classes-not/../secret".to_owned(),
        "/classes/..".to_owned(),
        "/classes/".to_owned(),
        "/classes/sub".to_owned(),
        "/classes/real/".to_owned(),
        "/classes/real/x".to_owned(),
        "/classes/re\0al".to_owned(),
        "/classes/missing".to_owned(),
        format!("/classes/{}", secret.display()),
        format!("/classes{}", secret.display()),
        format!("/classes/C:{}", secret.display()),
        format!("/files/{}", secret.display()),
        "/files/../classes/real".to_owned(),
        "/jars/".to_owned(),
    ];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        symlink("../secret", classes.join("up")).unwrap();
        symlink(&secret, classes.join("absolute")).unwrap();
        symlink("..", classes.join("parent")).unwrap();
        symlink("real", classes.join("alias")).unwrap();
        within.push("/classes/alias");
        outside.extend(["up", "absolute", "parent/secret"].map(|link| format!("/classes/{link}")));
    }
    soon(server.file_server().add_directory("/classes", &classes)).await.unwrap();
    let client = raw_client(&server).await;
    for id in within {
        assert_eq!(soon(client.stream(id)).await.unwrap().collect().await.unwrap(), "real", "{id}");
    }
    for id in outside {
        let error = soon(client.stream(&id)).await.unwrap_err();
        assert!(error.is_remote(), "{id}: {error}");
        assert!(error.to_string().contains("was not found"), "{id}: {error}");
    }
    // A client decodes the path of a URI once before it requests it.
    let env = common::client().await;
    let root = address(&server).to_spark_url();
    for path in [
        "/classes/%2e%2e/secret",
        "/classes/..%2Fsecret",
        "/classes%2F..%2Fsecret",
        "/classes/%252e%252e/secret",
    ] {
        let error = content(&env, &format!("{root}{path}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FileUnavailable, "{path}");
    }
}

#[tokio::test]
async fn malformed_stream_ids_fail_and_connection_stays_open() {
    let (server, temp) = (server().await, TempDir::new().unwrap());
    file(temp.path(), "real", b"real");
    soon(server.file_server().add_directory("/dir", temp.path())).await.unwrap();
    let client = raw_client(&server).await;
    for id in [
        String::new(),
        "/".repeat(60_000),
        format!("/dir/{}", "x".repeat(60_000)),
        "a/".repeat(30_000),
    ] {
        assert!(soon(client.stream(&id)).await.unwrap_err().is_remote());
    }
    let too_long = soon(client.stream(&"/".repeat(1 << 20))).await.unwrap_err();
    assert_eq!(too_long.kind(), network_common::ErrorKind::Limit, "{too_long:#}");
    assert!(soon(client.fetch_chunk(0, 0)).await.unwrap_err().is_remote());
    assert_eq!(soon(client.stream("/dir/real")).await.unwrap().collect().await.unwrap(), "real");
}

/// Opening a pipe would block a thread until its other end is opened.
#[cfg(unix)]
#[tokio::test]
async fn named_pipe_is_not_served() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let pipe = temp.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let files = server.file_server();
    assert_eq!(soon(files.add_file(&pipe)).await.unwrap_err().kind(), ErrorKind::Config);
    let uri = soon(files.add_directory("/dir", temp.path())).await.unwrap();
    assert_eq!(
        content(&client, &format!("{uri}/pipe")).await.unwrap_err().kind(),
        ErrorKind::FileUnavailable
    );
}

#[tokio::test]
async fn file_is_read_at_time_of_request() {
    let (server, client, temp) = (server().await, client().await, TempDir::new().unwrap());
    let path = file(temp.path(), "name", b"before");
    let uri = soon(server.file_server().add_file(&path)).await.unwrap();
    fs::write(&path, b"after").unwrap();
    assert_eq!(content(&client, &uri).await.unwrap(), b"after");
    fs::remove_file(&path).unwrap();
    assert_eq!(content(&client, &uri).await.unwrap_err().kind(), ErrorKind::FileUnavailable);
    // A directory that replaces the file is not served.
    fs::create_dir(&path).unwrap();
    assert_eq!(content(&client, &uri).await.unwrap_err().kind(), ErrorKind::FileUnavailable);
}

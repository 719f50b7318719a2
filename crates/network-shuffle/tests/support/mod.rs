//! A service, an executor's files, and a client, for tests.
#![allow(dead_code, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use network_common::auth::{Secret, SecretStore};
use network_common::{
    NoOpRpcHandler, TransportClient, TransportConf, TransportContext, TransportError,
};
use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo, IntLists, StringList};
use network_shuffle::{ShuffleService, ShuffleServiceConf};
use tempfile::TempDir;

pub(crate) const APP: &str = "app-1";
pub(crate) const EXEC: &str = "exec-2";
pub(crate) const SUB_DIRS: i32 = 64;
pub(crate) const MANAGER: &str = "org.apache.spark.shuffle.sort.SortShuffleManager";

/// Starts a service on a free port without a store.
pub(crate) async fn start(settings: &[(&str, &str)]) -> ShuffleService {
    let mut all = vec![
        ("spark.shuffle.service.host", "127.0.0.1"),
        ("spark.shuffle.service.port", "0"),
        ("spark.shuffle.service.db.enabled", "false"),
    ];
    all.extend_from_slice(settings);
    let conf = ShuffleServiceConf::from_settings(all.iter().copied()).unwrap();
    let transport = TransportConf::from_settings("shuffle", all.iter().copied()).unwrap();
    ShuffleService::start(&conf, transport, None).await.unwrap()
}

/// Connects to a service without authentication.
pub(crate) async fn connect(service: &ShuffleService) -> TransportClient {
    let conf = TransportConf::new("shuffle");
    let context = TransportContext::new(conf, NoOpRpcHandler::new());
    context.create_client_factory().create_client(service.local_addr()).await.unwrap()
}

/// Connects and authenticates as `app_id` with `secret`.
pub(crate) async fn connect_as(
    service: &ShuffleService,
    app_id: &str,
    secret: &str,
) -> Result<TransportClient, TransportError> {
    let settings = [("spark.authenticate", "true"), ("spark.network.crypto.enabled", "true")];
    let conf = TransportConf::from_settings("shuffle", settings)?;
    let secrets = SecretStore::new();
    secrets.register_app(app_id, Secret::new(secret));
    let context =
        TransportContext::new(conf, NoOpRpcHandler::new()).with_auth(app_id, Arc::new(secrets))?;
    context.create_client_factory().create_client(service.local_addr()).await
}

/// Sends a message and decodes its response.
pub(crate) async fn ask(
    client: &TransportClient,
    message: &BlockTransferMessage,
) -> Result<BlockTransferMessage, TransportError> {
    let response = client.send_rpc(message.encode()).await?;
    Ok(BlockTransferMessage::decode(&response).unwrap())
}

/// Opens a stream; returns its id and the number of its chunks.
pub(crate) async fn open(
    client: &TransportClient,
    message: &BlockTransferMessage,
) -> Result<(i64, i32), TransportError> {
    match ask(client, message).await? {
        BlockTransferMessage::StreamHandle { stream_id, num_chunks } => Ok((stream_id, num_chunks)),
        other => panic!("{other:?} is no stream handle"),
    }
}

pub(crate) fn open_blocks(ids: &[&str]) -> BlockTransferMessage {
    BlockTransferMessage::OpenBlocks {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        block_ids: StringList::from_iter(ids),
    }
}

pub(crate) fn fetch_blocks(
    map_ids: &[i64],
    reduce_ids: &[&[i32]],
    batch: bool,
) -> BlockTransferMessage {
    BlockTransferMessage::FetchShuffleBlocks {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        shuffle_id: 0,
        map_ids: map_ids.to_vec(),
        reduce_ids: IntLists::from_iter(reduce_ids.iter().map(|list| list.to_vec())),
        batch,
    }
}

pub(crate) fn remove_blocks(names: &[&str]) -> BlockTransferMessage {
    BlockTransferMessage::RemoveBlocks {
        app_id: APP.to_owned(),
        exec_id: EXEC.to_owned(),
        block_ids: StringList::from_iter(names),
    }
}

/// The local directories of one executor, `blockmgr-0` and so on.
pub(crate) struct Executor {
    pub(crate) root: TempDir,
    pub(crate) dirs: Vec<PathBuf>,
}

impl Executor {
    pub(crate) fn new(dir_count: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<_> =
            (0..dir_count).map(|i| root.path().join(format!("blockmgr-{i}"))).collect();
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        Self { root, dirs }
    }

    pub(crate) fn info(&self) -> ExecutorShuffleInfo {
        let dirs = self.dirs.iter().map(|dir| dir.to_str().unwrap());
        ExecutorShuffleInfo::new(dirs, SUB_DIRS, MANAGER)
    }

    pub(crate) fn registration(&self) -> BlockTransferMessage {
        self.registration_as(APP, EXEC)
    }

    pub(crate) fn registration_as(&self, app_id: &str, exec_id: &str) -> BlockTransferMessage {
        BlockTransferMessage::RegisterExecutor {
            app_id: app_id.to_owned(),
            exec_id: exec_id.to_owned(),
            info: self.info(),
        }
    }

    pub(crate) async fn register(&self, client: &TransportClient) {
        let response = client.send_rpc(self.registration().encode()).await.unwrap();
        assert_eq!(response, Bytes::new());
    }

    /// Returns the path of a file, as Spark's `ExecutorDiskUtils` hashes it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let hash =
            name.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        let hash = hash.unsigned_abs() as usize;
        let sub_dir = hash / self.dirs.len() % SUB_DIRS as usize;
        self.dirs[hash % self.dirs.len()].join(format!("{sub_dir:02x}")).join(name)
    }

    pub(crate) fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes the index and data files of a map output of shuffle 0.
    pub(crate) fn write_map(&self, map_id: i64, blocks: &[&[u8]]) {
        let mut offsets = vec![0_u64];
        blocks.iter().for_each(|block| offsets.push(offsets.last().unwrap() + block.len() as u64));
        self.write_index(map_id, &offsets);
        self.write(&format!("shuffle_0_{map_id}_0.data"), &blocks.concat());
    }

    pub(crate) fn write_index(&self, map_id: i64, offsets: &[u64]) -> PathBuf {
        let index: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_be_bytes()).collect();
        self.write(&format!("shuffle_0_{map_id}_0.index"), &index)
    }
}

/// Waits until `condition` is true, for at most 10 s.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 10 s: {what}");
}

/// Returns the text of an error with its causes.
pub(crate) fn text(error: &TransportError) -> String {
    format!("{error:#}")
}

pub(crate) fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}

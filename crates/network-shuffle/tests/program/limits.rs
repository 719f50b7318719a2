//! Many executors and streams, and a full disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use network_common::TransportClient;
use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo};

use crate::running_program::{Program, command, settings, value};
use crate::support::*;

/// Returns the most memory that a process has used, in KiB.
fn peak_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Returns the number of open files of a process.
fn open_files(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

#[tokio::test]
async fn ess_20_memory_and_files_stay_bounded_with_many_executors_and_streams() {
    const EXECUTORS: usize = 4000;
    const CONNECTIONS: usize = 100;
    const STREAMS: usize = 20;
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let no_store = [("spark.shuffle.service.db.enabled", "false")];
    let mut program = Program::start(&mut command(&settings(dir.path(), &no_store)));
    let client = program.connect().await;
    let info = executor.info();
    for first in (0..EXECUTORS).step_by(200) {
        let requests = (first..first + 200).map(|index| {
            let message = BlockTransferMessage::RegisterExecutor {
                app_id: APP.to_owned(),
                exec_id: index.to_string(),
                info: info.clone(),
            };
            client.send_rpc(message.encode())
        });
        futures::future::try_join_all(requests).await.unwrap();
    }
    let files = open_files(program.child.id());
    let maps: Vec<i64> = (0..1000).collect();
    let lists: Vec<&[i32]> = vec![&[0, 1, 2]; maps.len()];
    let message = fetch_blocks(&maps, &lists, false);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let client = program.connect().await;
        let requests = (0..STREAMS).map(|_| open(&client, &message));
        futures::future::try_join_all(requests).await.unwrap();
        clients.push(client);
    }
    // 2000 streams of 28 KB each, 16 MB at most for the rest.
    let peak = peak_memory(program.child.id());
    assert!(peak < 120 << 10, "{peak} KiB");
    clients.iter().for_each(TransportClient::close);
    program.signal("USR1");
    for _ in 0..1000 {
        let report = program.read_until("shuffle-server.sentBytes");
        // A socket is closed after its connection was counted.
        if value(&report, "openStreams") == 0 && open_files(program.child.id()) == files {
            assert_eq!(value(&report, "openStreamsBytes"), 0);
            assert_eq!(value(&report, "registeredExecutorsSize"), EXECUTORS as u64);
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        program.signal("USR1");
    }
    panic!("the streams are not released");
}

/// Starts the program with its store on a file system of 8 MiB, in namespaces of its own.
///
/// Returns `None` if this machine does not allow that to this user.
fn start_on_small_disk(dir: &Path, required: bool) -> Option<Program> {
    let is_allowed = Command::new("unshare").args(["-rm", "true"]).status();
    if !is_allowed.is_ok_and(|status| status.success()) {
        eprintln!("this user cannot create namespaces, so a full disk is not tested");
        return None;
    }
    let required = required.to_string();
    let settings = settings(dir, &[("spark.shuffle.service.db.required", &required)]);
    let program = command(&settings);
    let mount =
        format!("mount -t tmpfs -o size=8m,mode=700 none {} && exec \"$0\" \"$@\"", path_text(dir));
    let mut unshare = Command::new("unshare");
    unshare
        .args(["-rm", "sh", "-c", &mount])
        .arg(program.get_program())
        .args(program.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    Some(Program::start(&mut unshare))
}

#[tokio::test]
async fn ess_08_full_disk_fails_registrations_only_if_store_is_required() {
    for required in [false, true] {
        let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
        let Some(program) = start_on_small_disk(dir.path(), required) else { return };
        executor.write_map(0, &[b"block"]);
        let client = program.connect().await;
        executor.register(&client).await;
        let mut failed = 0;
        for index in 0..40 {
            let large = ExecutorShuffleInfo::new(["/data/blockmgr-0"], 64, "x".repeat(500_000));
            let message = BlockTransferMessage::RegisterExecutor {
                app_id: APP.to_owned(),
                exec_id: format!("large-{index}"),
                info: large,
            };
            if let Err(error) = client.send_rpc(message.encode()).await {
                let text = text(&error);
                assert!(text.contains("spark.shuffle.service.db.dir"), "{text}");
                failed += 1;
            }
        }
        assert_eq!(failed > 0, required);
        let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
        assert_eq!(client.fetch_chunk(stream, 0).await.unwrap(), "block");
        program.signal("TERM");
        let report = program.wait();
        assert_eq!(value(&report, "unstoredRegistrations") > 0, !required);
        assert_eq!(value(&report, "registeredExecutorsSize"), 41 - failed);
    }
}

//! The program `shuffle-service`: its output, its errors, and its end at any moment.
#![allow(clippy::unwrap_used, reason = "a failure ends the test")]

mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};
use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo, StringList};
use support::*;

/// A running program, which is killed when it is dropped.
struct Program {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

fn command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shuffle-service"));
    command.env_remove("SPARK_HOME").env_remove("SPARK_CONF_DIR");
    for (key, value) in settings {
        command.args(["--conf", &format!("{key}={value}")]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Settings of a service on a free port with a store in `dir`.
fn settings<'a>(dir: &'a Path, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("spark.shuffle.service.host", "127.0.0.1"),
        ("spark.shuffle.service.port", "0"),
        ("spark.shuffle.service.db.dir", path_text(dir)),
    ];
    settings.extend_from_slice(more);
    settings
}

impl Program {
    fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("shuffle-service is listening on ");
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Self { child, output, address }
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Returns the next lines up to and including the first one that begins with `last`.
    fn read_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        while !text.lines().last().is_some_and(|line| line.starts_with(last)) {
            assert_ne!(self.output.read_line(&mut text).unwrap(), 0, "{text}");
        }
        text
    }

    /// Waits for the end of the program; returns the rest of its output.
    fn wait(mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn connect(&self) -> TransportClient {
        let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
        context.create_client_factory().create_client(self.address).await.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn value(report: &str, name: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {report}")).parse().unwrap()
}

fn error_of(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

#[tokio::test]
async fn ess_17_program_prints_its_address_its_store_and_its_modes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spark-defaults.conf");
    fs::write(&file, "spark.shuffle.service.index.cache.size 10m\nspark.ui.port 4040\n").unwrap();
    let mut command = command(&settings(dir.path(), &[]));
    let mut program = Program::start(command.arg("--properties-file").arg(&file));
    let modes = program.read_until("TLS");
    assert!(modes.contains("registeredExecutors.redb, with 0 executors"), "{modes}");
    assert!(modes.contains("local directories of executors: any"), "{modes}");
    assert!(modes.contains("authentication: off"), "{modes}");
    assert!(modes.contains("TLS: off"), "{modes}");
}

#[test]
fn ess_17_errors_at_start_name_setting_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let used = port.local_addr().unwrap().port().to_string();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let missing = dir.path().join("missing");
    for (key, value, more, expected) in [
        ("spark.shuffle.service.port", used.as_str(), None, "spark.shuffle.service.port"),
        ("spark.shuffle.service.port", "x", None, "expected a number up to 65535"),
        (
            "spark.shuffle.service.index.cache.size",
            "-1",
            None,
            "expected a size of 0 bytes or more",
        ),
        ("spark.local.dir", "relative", None, "expected absolute paths, separated by commas"),
        ("spark.shuffle.io.backLog", "x", None, "spark.shuffle.io.backLog"),
        ("spark.authenticate", "true", None, "spark.shuffle.service.secrets.dir"),
        (
            "spark.authenticate",
            "true",
            Some(("spark.shuffle.service.secrets.dir", path_text(&missing))),
            path_text(&missing),
        ),
        (
            "spark.shuffle.service.db.required",
            "true",
            Some(("spark.shuffle.service.db.dir", path_text(&blocked))),
            "spark.shuffle.service.db.dir",
        ),
        ("spark.ssl.rpc.enabled", "true", None, "spark.ssl.rpc"),
    ] {
        let more: Vec<_> = [(key, value)].into_iter().chain(more).collect();
        let error = error_of(&mut command(&settings(dir.path(), &more)));
        assert!(error.contains(expected), "{key}={value}: {error}");
        assert!(error.contains("error: "), "{error}");
    }
    let mut command = command(&settings(dir.path(), &[]));
    let error = error_of(command.arg("--properties-file").arg(&missing));
    assert!(error.contains(path_text(&missing)) && error.contains("--properties-file"), "{error}");
}

#[test]
fn ess_17_unknown_keys_are_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let typing_error = [("spark.shuffle.service.indexCacheSize", "1m")];
    let program = Program::start(&mut command(&settings(dir.path(), &typing_error)));
    program.signal("TERM");
    let output = {
        let mut program = program;
        let mut error = String::new();
        program.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        error
    };
    let expected = "there is no setting spark.shuffle.service.indexCacheSize; did you mean \
                    spark.shuffle.service.index.cache.size?";
    assert!(output.contains(expected), "{output}");
}

#[tokio::test]
async fn ess_19_sigterm_waits_for_active_requests_and_prints_report() {
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let mut program = Program::start(&mut command(&settings(dir.path(), &[])));
    let block = vec![7; 64 << 20];
    executor.write_map(0, &[&block]);
    let client = program.connect().await;
    executor.register(&client).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    let mut body = client.stream(&format!("{stream}_0")).await.unwrap();
    program.signal("TERM");
    program.read_until("shuffle-service is stopping after SIGTERM");
    let mut len = 0;
    while let Some(piece) = body.next_piece().await {
        len += piece.unwrap().len();
    }
    assert_eq!(len, block.len());
    let report = program.wait();
    assert_eq!(value(&report, "blockTransferRateBytes"), block.len() as u64);
    assert_eq!(value(&report, "registeredExecutorsSize"), 1);
    assert!(report.contains("; 0 connections had active requests"), "{report}");
}

#[tokio::test]
async fn ess_19_drain_deadline_closes_connections_that_do_not_read() {
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let mut command = command(&settings(dir.path(), &[]));
    let program = Program::start(command.args(["--drain-timeout", "300ms"]));
    executor.write_map(0, &[&vec![7; 64 << 20]]);
    let client = program.connect().await;
    executor.register(&client).await;
    let (stream, _) = open(&client, &fetch_blocks(&[0], &[&[0]], false)).await.unwrap();
    let _unread = client.stream(&format!("{stream}_0")).await.unwrap();
    program.signal("TERM");
    let report = program.wait();
    assert!(report.contains("; 1 connections had active requests"), "{report}");
}

#[tokio::test]
async fn ess_21_sigusr1_prints_counters_of_running_service() {
    let (dir, executor) = (tempfile::tempdir().unwrap(), Executor::new(1));
    let mut program = Program::start(&mut command(&settings(dir.path(), &[])));
    executor.register(&program.connect().await).await;
    program.signal("USR1");
    let report = program.read_until("shuffle-server.sentBytes");
    assert_eq!(value(&report, "registerExecutorRequests"), 1);
    program.connect().await;
}

/// Kills the program at random moments while executors register.
///
/// `ROUNDS=200 cargo test -p network-shuffle --test program ess_07` runs more rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ess_07_no_acknowledged_registration_is_lost_by_sigkill() {
    const CONNECTIONS: usize = 4;
    let rounds = std::env::var("ROUNDS").map_or(20, |rounds| rounds.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let start = || Program::start(&mut command(&settings(dir.path(), &[])));
    let mut acknowledged: HashMap<String, String> = HashMap::new();
    for round in 0..rounds {
        let mut program = start();
        let mut registering = Vec::new();
        for connection in 0..CONNECTIONS {
            let client = program.connect().await;
            registering.push(tokio::spawn(register_until_closed(client, round, connection)));
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(0..200))).await;
        program.kill();
        for registered in registering {
            acknowledged.extend(registered.await.unwrap());
        }

        let program = start();
        let client = program.connect().await;
        let exec_ids: Vec<_> = acknowledged.keys().cloned().collect();
        let message = BlockTransferMessage::GetLocalDirsForExecutors {
            app_id: APP.to_owned(),
            exec_ids: StringList::from_iter(&exec_ids),
        };
        match ask(&client, &message).await.unwrap() {
            BlockTransferMessage::LocalDirsForExecutors { local_dirs } => {
                for (exec_id, dirs) in local_dirs {
                    assert_eq!(dirs, [acknowledged[&exec_id].as_str()], "round {round}");
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(acknowledged.len() > rounds, "only {} registrations", acknowledged.len());
}

/// Registers executors, several at once; returns those that were acknowledged.
async fn register_until_closed(
    client: TransportClient,
    round: usize,
    connection: usize,
) -> HashMap<String, String> {
    const AT_ONCE: usize = 8;
    let mut acknowledged = HashMap::new();
    for step in 0.. {
        let requests = (0..AT_ONCE).map(|index| {
            // Every executor registers twice, with another directory.
            let exec_id = format!("exec-{round}-{connection}-{}-{index}", step / 2);
            let dir = format!("/data/blockmgr-{round}-{step}");
            let message = BlockTransferMessage::RegisterExecutor {
                app_id: APP.to_owned(),
                exec_id: exec_id.clone(),
                info: ExecutorShuffleInfo::new([&dir], SUB_DIRS, MANAGER),
            };
            let response = client.send_rpc(message.encode());
            async move { (exec_id, dir, response.await.is_ok()) }
        });
        let mut is_closed = false;
        for (exec_id, dir, is_acknowledged) in futures::future::join_all(requests).await {
            if is_acknowledged {
                acknowledged.insert(exec_id, dir);
            } else {
                // The registration may have been stored without an acknowledgement.
                acknowledged.remove(&exec_id);
                is_closed = true;
            }
        }
        if is_closed {
            break;
        }
    }
    acknowledged
}

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

#[test]
fn ess_17_help_lists_all_settings() {
    let help = command(&[]).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "--properties-file",
        "--drain-timeout",
        "spark.shuffle.service.port\n      number, default 7337: port",
        "spark.shuffle.io.backLog",
        "spark.ssl.rpc.keyStore",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    let short = command(&[]).arg("-h").output().unwrap();
    assert!(short.stdout.len() < 2000);
}

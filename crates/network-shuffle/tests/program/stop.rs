//! Signals, and the end of the program at any moment.

use std::collections::HashMap;
use std::time::Duration;

use network_common::TransportClient;
use network_shuffle::protocol::{BlockTransferMessage, ExecutorShuffleInfo, StringList};

use crate::running_program::{Program, command, settings, value};
use crate::support::*;

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

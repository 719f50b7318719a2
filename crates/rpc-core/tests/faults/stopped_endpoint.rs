//! Row `fault_c1`: an endpoint is stuck in `receive` with messages of remote clients, is stopped,
//! and has no successor. Its callers get errors at once.

use std::time::{Duration, Instant};

use rpc_core::ErrorKind;

use crate::common::hi;
use crate::fixture::{ask, look_up, promptly, watch_undelivered, within};
use crate::stuck_predecessor::{Case, LOADS, assert_held_ask_succeeds};

#[tokio::test]
async fn fault_c1_asks_fail_at_once_without_successor() {
    for load in LOADS {
        let mut case = Case::start_default(load).await;
        let queued: Vec<_> = (0..100).map(|_| tokio::spawn(ask(&case.remote, "queued"))).collect();
        look_up(&case.client, &case.server).await;
        case.server.stop(&case.local);
        for _ in 0..200 {
            let error = promptly("an ask of a stopped endpoint", ask(&case.remote, "late")).await;
            assert_eq!(error.unwrap_err().kind(), ErrorKind::EndpointNotFound, "{load:?}");
        }
        assert!(!case.held.is_finished(), "stopping does not end a held ask");
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
        let mut not_found = 0;
        for reply in queued {
            match promptly("the end of a queued ask", reply).await.unwrap() {
                // The stopped endpoint held this ask.
                Ok(label) => assert_eq!(label, "first"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::EndpointNotFound, "{load:?}");
                    not_found += 1;
                }
            }
        }
        assert_ne!(not_found, 0, "{load:?}: asks waited at the client for credit");
    }
}

#[tokio::test]
async fn fault_c1_sends_are_reported_undelivered_without_successor() {
    for load in LOADS {
        let mut case = Case::start_default(load).await;
        let mut undelivered = watch_undelivered(&case.client);
        case.server.stop(&case.local);
        for n in 0..200 {
            promptly("send_wait", case.remote.send_wait(hi("late"))).await.unwrap();
            let error =
                promptly(&format!("report {n} of an undelivered send"), undelivered.recv()).await;
            assert_eq!(error.unwrap().0.kind(), ErrorKind::EndpointNotFound, "{load:?}");
        }
        case.gate.open();
        assert_held_ask_succeeds(case.held, "first").await;
    }
}

#[tokio::test]
async fn fault_c1_client_shuts_down_quickly_after_endpoint_stop() {
    for load in LOADS {
        for with_successor in [false, true] {
            let case = Case::start_default(load).await;
            let successor = if with_successor {
                Some(case.replace())
            } else {
                case.server.stop(&case.local);
                None
            };
            for _ in 0..100 {
                case.remote.send(hi("late")).unwrap();
            }
            let started = Instant::now();
            let shutdown =
                within(Duration::from_secs(8), "the client's shutdown", case.client.shutdown());
            let report = shutdown.await;
            let elapsed = started.elapsed();
            assert!(
                elapsed < Duration::from_secs(1),
                "{load:?}, successor: {with_successor}: {elapsed:?}"
            );
            assert_eq!(report.unsent, 0, "{load:?}, successor: {with_successor}");
            if let Some((_local, mut second)) = successor {
                for _ in 0..100 {
                    assert_eq!(second.next().await, "late");
                }
            }
        }
    }
}

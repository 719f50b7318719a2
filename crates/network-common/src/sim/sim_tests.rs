//! Tests of the simulated network, below the transport.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{LinkOptions, SimReadHalf, SimWriteHalf, Simulation};
use crate::net::{IoStream, ReadHalf, WriteHalf};

const CLIENT: [u8; 4] = [10, 0, 0, 1];
const SERVER: [u8; 4] = [10, 0, 0, 2];

type Halves = (Box<SimReadHalf>, Box<SimWriteHalf>);

fn halves(stream: IoStream) -> Halves {
    match stream.into_split() {
        (ReadHalf::Sim(read), WriteHalf::Sim(write)) => (Box::new(read), Box::new(write)),
        _ => panic!("not a simulated stream"),
    }
}

/// Connects the two hosts; returns the ends of client and server.
async fn connect(simulation: &Simulation) -> (Halves, Halves) {
    let address = "10.0.0.2:7".parse().unwrap();
    let mut listener = simulation.network(SERVER).listen(&address).unwrap();
    let client = simulation.network(CLIENT).connect(&address).await.unwrap();
    (halves(client), halves(listener.accept().await.unwrap()))
}

fn fixed_latency(millis: u64) -> LinkOptions {
    let latency = Duration::from_millis(millis);
    LinkOptions::new().latency(latency..=latency)
}

#[test]
fn sim_01_bytes_arrive_in_order_after_the_latency() {
    let simulation = Simulation::new(3);
    simulation.set_default_link(fixed_latency(20));
    simulation.run(async {
        let ((_, mut out), (mut incoming, _)) = connect(&simulation).await;
        assert_eq!(simulation.now(), Duration::from_millis(40), "a round trip to connect");
        let sent: Vec<u8> = (0..100_000_u32).map(|index| index as u8).collect();
        out.write_all(&sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        incoming.read_exact(&mut received).await.unwrap();
        assert_eq!(received, sent);
        assert_eq!(simulation.now(), Duration::from_millis(60));
    });
}

#[test]
fn sim_02_bandwidth_limits_the_rate_of_a_connection() {
    let simulation = Simulation::new(3);
    simulation.set_default_link(fixed_latency(0).bandwidth(100_000));
    simulation.run(async {
        let ((_, mut out), (mut incoming, _)) = connect(&simulation).await;
        out.write_all(&vec![0; 200_000]).await.unwrap();
        incoming.read_exact(&mut vec![0; 200_000]).await.unwrap();
        let took = simulation.now().as_millis();
        assert!((2_000..=2_010).contains(&took), "{took} ms");
    });
}

#[test]
fn sim_03_blocked_direction_holds_bytes_until_it_is_unblocked() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((mut client_in, mut client_out), (mut server_in, mut server_out)) =
            connect(&simulation).await;
        simulation.block(CLIENT, SERVER);
        client_out.write_all(b"held").await.unwrap();
        server_out.write_all(b"passes").await.unwrap();
        client_in.read_exact(&mut [0; 6]).await.unwrap();
        let held = server_in.read_u8();
        assert!(tokio::time::timeout(Duration::from_secs(60), held).await.is_err());
        assert!(simulation.fault_counts().held_reads > 0);
        simulation.unblock(CLIENT, SERVER);
        server_in.read_exact(&mut [0; 4]).await.unwrap();
    });
}

#[test]
fn sim_04_reset_fails_both_ends_and_loses_unread_bytes() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((mut client_in, mut client_out), (mut server_in, _server_out)) =
            connect(&simulation).await;
        client_out.write_all(b"lost").await.unwrap();
        assert_eq!(simulation.reset_connections(CLIENT, SERVER), 1);
        assert!(server_in.read_u8().await.is_err());
        assert!(client_in.read_u8().await.is_err());
        assert!(client_out.write_all(b"x").await.is_err());
        assert_eq!(simulation.reset_connections(CLIENT, SERVER), 0);
        assert_eq!(simulation.fault_counts().resets, 1);
    });
}

#[test]
fn sim_05_crashed_host_leaves_half_open_connections_until_its_restart() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((mut client_in, mut client_out), server) = connect(&simulation).await;
        simulation.crash(SERVER);
        drop(server);
        client_out.write_all(b"unacknowledged").await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(3600), client_in.read_u8()).await;
        assert!(read.is_err(), "there is neither data nor an error");
        let network = simulation.network(CLIENT);
        let address = "10.0.0.2:7".parse().unwrap();
        let connect = network.connect(&address);
        assert!(tokio::time::timeout(Duration::from_secs(3600), connect).await.is_err());
        simulation.restart(SERVER);
        assert!(client_in.read_u8().await.is_err(), "the restarted host resets the connection");
        let refused = network.connect(&address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let counts = simulation.fault_counts();
        assert_eq!((counts.half_open, counts.stale_resets, counts.held_connects), (1, 1, 1));
    });
}

#[test]
fn sim_06_close_with_unread_bytes_resets_the_connection() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((mut client_in, mut client_out), server) = connect(&simulation).await;
        client_out.write_all(b"never read").await.unwrap();
        drop(server);
        assert!(client_in.read_u8().await.is_err());
        assert_eq!(simulation.fault_counts().unread_resets, 1);
        drop((client_in, client_out));
        assert_eq!(simulation.connection_count(), 0);
    });
}

#[test]
fn sim_07_shut_down_direction_ends_and_the_other_one_continues() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((mut client_in, client_out), (mut server_in, mut server_out)) =
            connect(&simulation).await;
        drop(client_out);
        assert_eq!(server_in.read(&mut [0; 8]).await.unwrap(), 0);
        server_out.write_all(b"still open").await.unwrap();
        client_in.read_exact(&mut [0; 10]).await.unwrap();
    });
}

#[test]
fn sim_08_paused_and_slow_hosts_fill_the_buffer_of_the_sender() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let ((_client_in, mut out), (mut incoming, _server_out)) = connect(&simulation).await;
        simulation.pause_reads(SERVER);
        let read = tokio::spawn(async move {
            incoming.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        });
        let write = async { out.write_all(&vec![0; 1 << 20]).await.unwrap() };
        tokio::pin!(write);
        assert!(tokio::time::timeout(Duration::from_secs(60), &mut write).await.is_err());
        simulation.set_read_rate(SERVER, Some(100 << 10));
        simulation.resume_reads(SERVER);
        write.await;
        read.await.unwrap();
        let took = simulation.now().as_secs();
        assert!((67..=72).contains(&took), "60 s of pause and 10 s at 100 KiB/s: {took} s");
        assert!(simulation.fault_counts().paused_reads > 0);
        assert!(simulation.fault_counts().slow_reads > 0);
    });
}

#[test]
fn sim_09_names_resolve_to_what_the_test_sets() {
    let simulation = Simulation::new(3);
    simulation.run(async {
        let network = simulation.network(CLIENT);
        let mut listener =
            simulation.network(SERVER).listen(&"0.0.0.0:7".parse().unwrap()).unwrap();
        let address = "db.example:7".parse().unwrap();
        assert!(network.connect(&address).await.is_err());
        assert_eq!(simulation.fault_counts().failed_lookups, 1);
        // The first address refuses; the second one is tried as well.
        simulation.set_name("db.example", [IpAddr::from([10, 0, 0, 9]), IpAddr::from(SERVER)]);
        network.connect(&address).await.unwrap();
        listener.accept().await.unwrap();
        assert_eq!(simulation.fault_counts().refused_connects, 1);
    });
}

#[test]
fn sim_10_same_seed_repeats_the_trace_and_another_one_does_not() {
    let run = |seed| {
        let simulation = Simulation::new(seed);
        simulation.record_timeline();
        simulation.run(async {
            let ((_client_in, mut out), (mut incoming, _server_out)) = connect(&simulation).await;
            let writer = tokio::spawn(async move { out.write_all(&vec![7; 300_000]).await });
            incoming.read_exact(&mut vec![0; 300_000]).await.unwrap();
            writer.await.unwrap().unwrap();
        });
        assert!(simulation.timeline().len() > 3);
        simulation.trace_hash()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
#[should_panic(expected = "has not completed after")]
fn sim_11_run_that_cannot_complete_panics() {
    Simulation::new(3).run(std::future::pending::<()>());
}

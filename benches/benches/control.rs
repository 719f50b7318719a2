//! Criterion benches of echoes, asks and one-way messages, and of their limits.

mod support;

use benches::actors::LocalActors;
use benches::groups::{echoes, local};
use benches::limits::{Batched, Channel, PingPong, Smallest, serve_echo};
use benches::load::CallClient;
use benches::ours::{self, RpcClient, RpcServer, Security, TransportCallClient};
use benches::protocol::{Case, Job};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{bench, group};
use tokio::runtime::Runtime;

fn echo(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let (server, limit_address) = runtime.block_on(async {
        (
            ours::serve(None, Security::Plain).await.expect("the server cannot start"),
            serve_echo().await.expect("the server of the limits cannot start"),
        )
    });
    for (name, bytes) in [("echo_64B", 64), ("echo_1KiB", 1024)] {
        let mut group = group(criterion, name);
        for (parameter, job) in echoes(bytes) {
            let ours = TransportCallClient::new(server.local_addr(), Security::Plain);
            let mut ours = Some(ours.expect("plain connections are always supported"));
            bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
            if job.tasks == 1 {
                bench(
                    &mut group,
                    &runtime,
                    "batched",
                    parameter,
                    &mut Some(Batched::new(limit_address)),
                    job,
                );
            }
            if parameter == "1" {
                let raw = runtime.block_on(PingPong::connect(limit_address));
                let mut raw = Some(raw.expect("the raw client cannot connect"));
                bench(&mut group, &runtime, "ping_pong", parameter, &mut raw, job);
            }
            let mut smallest = Some(CallClient::<Smallest<false>>::new(limit_address));
            bench(&mut group, &runtime, "smallest", parameter, &mut smallest, job);
            let mut yielding = Some(CallClient::<Smallest<true>>::new(limit_address));
            bench(&mut group, &runtime, "yielding", parameter, &mut yielding, job);
        }
        group.finish();
    }
}

fn typed_remote(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let server = runtime.block_on(RpcServer::start()).expect("the server cannot start");
    let address = server.address().expect("the server has an address");
    let mut client = Some(RpcClient::new(address).expect("the address is valid"));
    let mut group_of = |name: &str, jobs: &[(&str, Job)]| {
        let mut group = group(criterion, name);
        for (parameter, job) in jobs {
            bench(&mut group, &runtime, "ours", parameter, &mut client, *job);
        }
        group.finish();
    };
    let ask = Job::new(Case::Ask);
    group_of(
        "ask_remote",
        &[("1", ask), ("128", Job { window: 128, ..ask }), ("64_tasks", Job { tasks: 64, ..ask })],
    );
    group_of("send_remote", &[("1_producer", Job::new(Case::Send))]);
    // The connections must not stay open during the other benches.
    drop(server);
}

fn typed_local(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let mut ours =
        Some(runtime.block_on(ours::local_endpoints()).expect("the environment cannot start"));
    let mut limit = Some(LocalActors::new(|| Ok(Channel::start())));
    for (name, parameter, job) in local() {
        let mut group = group(criterion, name);
        bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
        bench(&mut group, &runtime, "channel", parameter, &mut limit, job);
        group.finish();
    }
}

criterion_group!(benches, echo, typed_remote, typed_local);
criterion_main!(benches);

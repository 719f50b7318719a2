//! `cargo bench`: echoes, asks and one-way messages of ours beside the limits.

mod support;

use benches::actors::Local;
use benches::groups::{echoes, local};
use benches::limits::{Batched, Channel, PingPong, Smallest, serve_echo};
use benches::load::Calls;
use benches::ours::{self, RpcClient, RpcServer, Security, TransportCalls};
use benches::protocol::{Case, Job};
use criterion::{Criterion, criterion_group, criterion_main};
use support::{bench, group};
use tokio::runtime::Runtime;

fn echo(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (server, limit_at) = runtime.block_on(async {
        (
            ours::serve(None, Security::Plain).await.expect("a server"),
            serve_echo().await.expect("a server"),
        )
    });
    for (name, bytes) in [("echo_64B", 64), ("echo_1KiB", 1024)] {
        let mut group = group(criterion, name);
        for (parameter, job) in echoes(bytes) {
            let ours = TransportCalls::new(server.local_addr(), Security::Plain);
            let mut ours = Some(ours.expect("nothing is asked for"));
            bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
            if job.tasks == 1 {
                bench(
                    &mut group,
                    &runtime,
                    "batched",
                    parameter,
                    &mut Some(Batched::new(limit_at)),
                    job,
                );
            }
            if parameter == "1" {
                let mut raw =
                    Some(runtime.block_on(PingPong::connect(limit_at)).expect("a connection"));
                bench(&mut group, &runtime, "ping_pong", parameter, &mut raw, job);
            }
            let mut smallest = Some(Calls::<Smallest<false>>::new(limit_at));
            bench(&mut group, &runtime, "smallest", parameter, &mut smallest, job);
            let mut yielding = Some(Calls::<Smallest<true>>::new(limit_at));
            bench(&mut group, &runtime, "yielding", parameter, &mut yielding, job);
        }
        group.finish();
    }
}

fn typed_remote(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(RpcServer::start()).expect("a server");
    let address = server.address().expect("an address");
    let mut client = Some(RpcClient::new(address).expect("a client"));
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
    // Ends here, so that its connections do not share the rest of the run.
    drop(server);
}

fn typed_local(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut ours = Some(runtime.block_on(ours::local_endpoints()).expect("an environment"));
    let mut limit = Some(Local::new(|| Ok(Channel::start())));
    for (name, parameter, job) in local() {
        let mut group = group(criterion, name);
        bench(&mut group, &runtime, "ours", parameter, &mut ours, job);
        bench(&mut group, &runtime, "channel", parameter, &mut limit, job);
        group.finish();
    }
}

criterion_group!(benches, echo, typed_remote, typed_local);
criterion_main!(benches);

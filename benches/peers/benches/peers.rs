//! Criterion benches of other libraries, in the groups of the main workspace.
//!
//! With the same `CARGO_TARGET_DIR`, criterion's report shows them beside network-common and
//! rpc-core.

#[path = "../../benches/support/mod.rs"]
mod support;

use benches::actors::{Actor, LocalActors};
use benches::groups::{bodies, echoes, local};
use benches::load::{CallClient, Target};
use benches::protocol::{Case, Job};
use criterion::{Criterion, criterion_group, criterion_main};
use peers::{actix, flight, hyper, kameo, ractor, tarpc, tonic};
use support::{bench, group};
use tokio::runtime::Runtime;

/// Runs the jobs of `groups` against the server that `listen` starts.
fn remote<T: Target>(
    criterion: &mut Criterion,
    contender: &str,
    listen: impl Future<Output = anyhow::Result<std::net::SocketAddr>>,
    groups: &[(&str, &[(&str, Job)])],
) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let address = runtime.block_on(listen).expect("the server cannot start");
    for (name, jobs) in groups {
        let mut group = group(criterion, name);
        for (parameter, job) in *jobs {
            let mut client = Some(CallClient::<T>::new(address));
            bench(&mut group, &runtime, contender, parameter, &mut client, *job);
        }
        group.finish();
    }
}

fn transports(criterion: &mut Criterion) {
    let (short, long) = (echoes(64), echoes(1024));
    let groups: [(&str, &[_]); 2] = [("echo_64B", &short), ("echo_1KiB", &long)];
    remote::<tarpc::Tarpc>(criterion, "tarpc", tarpc::listen(), &groups);
    remote::<tonic::Tonic>(criterion, "tonic", tonic::listen(), &groups);
}

fn bulk(criterion: &mut Criterion) {
    let jobs = bodies(Case::FetchMemory);
    let groups: [(&str, &[_]); 1] = [("fetch_memory", &jobs)];
    remote::<hyper::Hyper>(criterion, "hyper", hyper::listen(), &groups);
    remote::<flight::Flight>(criterion, "arrow-flight", flight::listen(), &groups);
}

fn actor<A: Actor>(
    criterion: &mut Criterion,
    contender: &str,
    start: impl FnMut() -> anyhow::Result<A> + Send + 'static,
) {
    let runtime = Runtime::new().expect("the runtime cannot be created");
    let mut client = Some(LocalActors::new(start));
    for (name, parameter, job) in local() {
        let mut group = group(criterion, name);
        bench(&mut group, &runtime, contender, parameter, &mut client, job);
        group.finish();
    }
}

fn actors(criterion: &mut Criterion) {
    actor(criterion, "actix", actix::starter().expect("actix cannot start"));
    actor(criterion, "kameo", || Ok(kameo::Kameo::start()));
    actor(criterion, "ractor", ractor::Ractor::start);
}

criterion_group!(benches, transports, bulk, actors);
criterion_main!(benches);

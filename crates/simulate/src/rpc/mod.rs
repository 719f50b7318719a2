//! Plays of rpc-core: environments, endpoints, asks and one-way messages.

mod auditor;
mod endpoint;
mod run;
mod steps;

pub(crate) use run::run;
pub(crate) use steps::generate_steps;

mod messages {
    #![allow(unreachable_pub, missing_docs, unnameable_types)]
    rpc_core::include_proto!("work");
}

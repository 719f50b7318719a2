//! The limit of the open loop: calls that complete at once.

use std::future::ready;
use std::net::SocketAddr;

use bench_protocol::{Case, Job, Sample};

use crate::load::{Client, Request, Target};
use crate::open_loop;

/// Measures the delay of the open loop's timer alone.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Timer {}

impl Client for Timer {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        tokio::spawn(open_loop::run(*self, job)).await?
    }
}

impl Target for Timer {
    const CASES: &'static [Case] = &[Case::Echo];
    const IS_EAGER: bool = true;

    async fn connect(_: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self {})
    }

    fn call(&self, _: &Request) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        ready(Ok(()))
    }
}

//! The frame codec of network-common without sockets.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, Sample};
use network_common::protocol::{Event, FrameDecoder, Message};

use crate::load::{Client, Meter};
use crate::process::unsupported;

/// Encodes an RPC request and decodes the frame.
#[derive(Debug, Default)]
pub struct Codec {
    decoder: FrameDecoder,
}

impl Client for Codec {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        anyhow::ensure!(job.case == Case::Echo, unsupported(job.case));
        let message = Message::RpcRequest { request_id: 1, body: vec![7; job.bytes].into() };
        let mut meter = Meter::new(&job);
        let start = Instant::now();
        while let Some(operation) = meter.begin() {
            let frame = black_box(&message).encode()?;
            let decoded =
                self.decoder.next_event(&mut &frame[..])?.context("the frame is incomplete")?;
            anyhow::ensure!(
                matches!(black_box(decoded), Event::Message(_)),
                "a short frame was not decoded as one message"
            );
            meter.end(operation)?;
        }
        Ok(meter.sample(start.elapsed()))
    }
}

//! Frames without sockets.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Context;
use bench_protocol::{Case, Job, Sample};
use network_common::protocol::{Event, FrameDecoder, Message};

use crate::load::{Client, Pace};
use crate::process::cannot;

/// Encodes a request and decodes it again: an echo of nothing but the codec.
#[derive(Debug, Default)]
pub struct Codec {
    decoder: FrameDecoder,
}

impl Client for Codec {
    async fn run(&mut self, job: Job) -> anyhow::Result<Sample> {
        anyhow::ensure!(job.case == Case::Echo, cannot(job.case));
        let message = Message::RpcRequest { request_id: 1, body: vec![7; job.bytes].into() };
        let mut pace = Pace::new(&job);
        let begun = Instant::now();
        while let Some(operation) = pace.begin() {
            let frame = black_box(&message).encode()?;
            let decoded = self.decoder.next_event(&mut &frame[..])?.context("a frame is whole")?;
            anyhow::ensure!(
                matches!(black_box(decoded), Event::Message(_)),
                "a short frame comes as one message"
            );
            pace.end(operation)?;
        }
        Ok(pace.sample(begun.elapsed()))
    }
}

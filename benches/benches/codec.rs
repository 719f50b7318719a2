//! Criterion benches of the frame codec, and of the messages that rpc-build generates.
//!
//! The envelope of rpc-core is not public. Its cost is the difference between the groups `echo` and
//! `ask_remote`.

use std::hint::black_box;

use benches::ours::messages::Ping;
use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use network_common::protocol::{Event, FrameDecoder, Message};
use prost::Message as _;

fn frames(criterion: &mut Criterion) {
    for (name, size) in [("codec_64B", 64), ("codec_1KiB", 1024)] {
        let message = Message::RpcRequest { request_id: 1, body: vec![7; size].into() };
        let frame: Bytes = message.encode().expect("a short message is valid").into();
        // Under load, a full read contains about this number of frames.
        let many: Bytes = frame.repeat(128).into();
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        group.bench_function("encode", |bencher| bencher.iter(|| black_box(&message).encode()));
        group.throughput(Throughput::Elements(128));
        group.bench_function("decode_128", |bencher| {
            bencher.iter_batched_ref(
                FrameDecoder::default,
                |decoder| {
                    let mut rest = &many[..];
                    while let Some(Event::Message(message)) =
                        decoder.next_event(&mut rest).expect("the frames are valid")
                    {
                        black_box(message);
                    }
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn messages(criterion: &mut Criterion) {
    let ping = Ping { payload: vec![7; 64].into() };
    let encoded: Bytes = ping.encode_to_vec().into();
    let mut group = criterion.benchmark_group("message_64B");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |bencher| {
        bencher.iter_batched_ref(
            || BytesMut::with_capacity(128),
            |out| black_box(&ping).encode(out),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Ping::decode(black_box(&encoded).clone()))
    });
    group.finish();
}

criterion_group!(benches, frames, messages);
criterion_main!(benches);

//! Encodes and decodes arbitrary messages, and decodes arbitrary bytes as a bitmap.
//!
//! Properties: decoding returns the encoded message and its body. A bitmap that can be decoded can
//! be encoded and decoded again with the same result.
//!
//! Input: the messages, and the bytes of the bitmap.

#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use network_common::protocol::{
    Event, FieldReader, FrameDecoder, MergedBlockMetaRequest, Message, put_bitmap, read_bitmaps,
};

/// An arbitrary message.
#[derive(Debug, Arbitrary)]
enum AnyMessage {
    ChunkFetchRequest(i64, i32),
    ChunkFetchSuccess(i64, i32, Vec<u8>),
    ChunkFetchFailure(i64, i32, String),
    RpcRequest(i64, Vec<u8>),
    RpcResponse(i64, Vec<u8>),
    RpcFailure(i64, String),
    StreamRequest(String),
    StreamResponse(String, Vec<u8>),
    StreamFailure(String, String),
    OneWayMessage(Vec<u8>),
    UploadStream(i64, Vec<u8>, Vec<u8>),
    MergedBlockMetaRequest(i64, String, i32, i32, i32),
    MergedBlockMetaSuccess(i64, i32, Vec<u8>),
}

impl AnyMessage {
    /// Returns the message, and the body that follows its frame.
    fn message(self) -> (Message<Bytes>, Vec<u8>) {
        let message = match self {
            Self::ChunkFetchRequest(stream_id, chunk_index) => {
                Message::ChunkFetchRequest { stream_id, chunk_index }
            }
            Self::ChunkFetchSuccess(stream_id, chunk_index, body) => {
                Message::ChunkFetchSuccess { stream_id, chunk_index, body: body.into() }
            }
            Self::ChunkFetchFailure(stream_id, chunk_index, error) => {
                Message::ChunkFetchFailure { stream_id, chunk_index, error }
            }
            Self::RpcRequest(request_id, body) => {
                Message::RpcRequest { request_id, body: body.into() }
            }
            Self::RpcResponse(request_id, body) => {
                Message::RpcResponse { request_id, body: body.into() }
            }
            Self::RpcFailure(request_id, error) => Message::RpcFailure { request_id, error },
            Self::StreamRequest(stream_id) => Message::StreamRequest { stream_id },
            Self::StreamResponse(stream_id, body) => {
                return (
                    Message::StreamResponse { stream_id, byte_count: body.len() as i64 },
                    body,
                );
            }
            Self::StreamFailure(stream_id, error) => Message::StreamFailure { stream_id, error },
            Self::OneWayMessage(body) => Message::OneWayMessage { body: body.into() },
            Self::UploadStream(request_id, meta, body) => {
                let byte_count = body.len() as i64;
                return (Message::UploadStream { request_id, meta: meta.into(), byte_count }, body);
            }
            Self::MergedBlockMetaRequest(
                request_id,
                app_id,
                shuffle_id,
                shuffle_merge_id,
                reduce_id,
            ) => Message::MergedBlockMetaRequest(MergedBlockMetaRequest {
                request_id,
                app_id,
                shuffle_id,
                shuffle_merge_id,
                reduce_id,
            }),
            Self::MergedBlockMetaSuccess(request_id, num_chunks, body) => {
                Message::MergedBlockMetaSuccess { request_id, num_chunks, body: body.into() }
            }
        };
        (message, Vec::new())
    }
}

fn check_bitmap(bytes: Vec<u8>) {
    let body = Bytes::from(bytes);
    let mut reader = FieldReader::new(&body);
    if let Ok(bitmap) = reader.bitmap() {
        let used = body.len() - reader.remaining();
        let mut encoded = Vec::new();
        put_bitmap(&bitmap, &mut encoded).expect("a vector has unlimited capacity");
        assert_eq!(FieldReader::new(&encoded).bitmap(), Ok(bitmap.clone()));
        assert_eq!(read_bitmaps(&body.slice(..used), 1), Ok(vec![bitmap]));
    }
    let _ = FieldReader::new(&body).bitmap_array();
    let _ = FieldReader::new(&body).string("text");
}

fuzz_target!(|input: (Vec<AnyMessage>, Vec<u8>)| {
    let (messages, bitmap) = input;
    check_bitmap(bitmap);
    for message in messages {
        let (message, outside) = message.message();
        let mut wire = message.encode().expect("the length is below the limit");
        assert_eq!(wire[..8], (wire.len() as u64).to_be_bytes());
        wire.extend_from_slice(&outside);
        let (mut decoder, mut rest) = (FrameDecoder::default(), &wire[..]);
        let mut streamed = Vec::new();
        while let Some(event) = decoder.next_event(&mut rest).expect("the frame is valid") {
            match event {
                Event::Message(decoded) => assert_eq!(decoded, message),
                Event::BodyStart { length, .. } if !outside.is_empty() => {
                    assert_eq!(length, outside.len() as u64);
                    decoder.stream_body();
                }
                Event::BodyStart { .. } => decoder.collect_body(true),
                Event::BodyPiece(piece) => streamed.extend_from_slice(&piece),
                Event::BodyEnd => assert_eq!(streamed, outside),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(decoder.finish(), Ok(()));
    }
});

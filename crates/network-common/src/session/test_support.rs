//! The session state of one connection without I/O, for rows of the areas `rsp` and `mwh`.

#[path = "stream_body_tests.rs"]
mod bodies;
#[path = "filter_tests.rs"]
mod filter;
#[path = "pending_requests_tests.rs"]
mod pending_requests;
#[path = "write_queue_tests.rs"]
mod write_queue;

use std::borrow::Cow;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    Batch, BulkMessage, BulkRequest, RequestKey, Response, Session, StreamBody, WriteQueue,
};
use crate::budget::ConnectionAccount;
use crate::buffer::ManagedBuffer;
use crate::error::{ErrorKind, TransportError};
use crate::protocol::{Event, FrameDecoder, Message};
use crate::session::response::RequestResult;

/// The names of the wakers in the order of their wake-ups.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<&'static str>>>);

struct Named(&'static str, Log);

impl Wake for Named {
    fn wake(self: Arc<Self>) {
        self.1.0.lock().push(self.0);
    }
}

impl Log {
    fn waker(&self, name: &'static str) -> Waker {
        Waker::from(Arc::new(Named(name, self.clone())))
    }

    fn add(&self, name: &'static str) {
        self.0.lock().push(name);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock())
    }
}

/// The limit of the write queue: 1 MiB.
const LIMIT: u64 = 1 << 20;

fn session() -> Session {
    let unread = ConnectionAccount::unlimited().unread();
    let queue = WriteQueue::new(LIMIT, "spark.test.limit".into(), unread);
    Session::new(([127, 0, 0, 1], 1).into(), queue)
}

fn failure(text: &str) -> TransportError {
    TransportError::new(ErrorKind::Remote, text)
}

fn body(bytes: &'static str) -> RequestResult {
    Ok(Response::Body(bytes.into()))
}

/// Polls a request that must be pending, and registers `waker`.
fn wait(session: &mut Session, ticket: RequestKey, waker: &Waker) {
    assert!(session.requests.poll(ticket, &Context::from_waker(waker)).is_pending());
}

/// Returns the result of a complete request, and checks that it is returned only once.
fn outcome(session: &mut Session, ticket: RequestKey) -> RequestResult {
    let mut poll = || session.requests.poll(ticket, &Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(outcome)) = poll() else { panic!("{ticket:?} is still pending") };
    assert!(matches!(poll(), Poll::Ready(None)), "a result must be returned only once");
    outcome
}

fn is_pending(session: &mut Session, ticket: RequestKey) -> bool {
    session.requests.poll(ticket, &Context::from_waker(Waker::noop())).is_pending()
}

fn next_piece(body: &mut StreamBody) -> Poll<Option<Result<Bytes, TransportError>>> {
    body.poll_piece(&Context::from_waker(Waker::noop()))
}

/// Returns the bytes of a batch, collected in contiguous parts.
fn bytes_of(batch: &Batch) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < batch.len() {
        all.extend_from_slice(&batch.contiguous(all.len(), usize::MAX));
    }
    all
}

/// Takes everything that is queued in memory, as the writer does. Returns the bytes.
fn drain(outgoing: &mut WriteQueue) -> Vec<u8> {
    let (mut all, mut batch) = (Vec::new(), Batch::default());
    while !outgoing.is_empty(true) {
        outgoing.fill_batch(&mut batch, true);
        assert!(!batch.is_empty(), "no files may be queued");
        all.extend(bytes_of(&batch));
        outgoing.on_batch_written(&batch.recycle());
    }
    all
}

fn messages(bytes: &[u8]) -> Vec<Message<Bytes>> {
    let (mut decoder, mut input, mut messages) = (FrameDecoder::default(), bytes, Vec::new());
    while let Some(event) = decoder.next_event(&mut input).unwrap() {
        match event {
            Event::Message(message) => messages.push(message),
            Event::BodyStart { .. } => decoder.collect_body(true),
            other => panic!("{other:?}"),
        }
    }
    decoder.finish().unwrap();
    messages
}

fn chunk(index: i32, body: impl Into<ManagedBuffer>) -> BulkMessage {
    let message = Message::ChunkFetchSuccess { stream_id: 1, chunk_index: index, body: () };
    BulkMessage { message, body: body.into(), upload: None }
}

/// Returns the bytes that a vectored write from `skip` with this number of slices offers.
fn offered(batch: &Batch, skip: usize, slices: usize) -> Vec<u8> {
    let mut places = vec![IoSlice::new(b"stale"); slices];
    let filled = batch.slices(skip, &mut places);
    places[..filled].iter().flat_map(|slice| slice.to_vec()).collect()
}

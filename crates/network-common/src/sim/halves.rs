//! The two halves of one end of a simulated connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::connection::{BUFFER_BYTES, SegmentContent, SimConnection};
use super::link::transmission_time;
use super::state::SimState;
use super::trace::TraceEvent;

/// One of 16 writes is accepted in part only.
const SHORT_WRITE_ODDS: u32 = 16;

/// One end of a simulated connection.
pub(crate) struct SimStream {
    read: SimReadHalf,
    write: SimWriteHalf,
}

/// Identifies one end of a connection.
struct EndKey {
    state: Arc<Mutex<SimState>>,
    id: u64,
    /// 0 is the client, 1 the server.
    end: usize,
}

/// The receiving half.
pub(crate) struct SimReadHalf {
    key: EndKey,
    /// Wakes the reader when the next segment arrives.
    arrival: Pin<Box<Sleep>>,
}

/// The sending half; dropping it ends the sending direction.
pub(crate) struct SimWriteHalf(EndKey);

impl SimStream {
    pub(super) fn new(state: Arc<Mutex<SimState>>, id: u64, end: usize) -> Self {
        let key = |state| EndKey { state, id, end };
        let arrival = Box::pin(tokio::time::sleep_until(Instant::now()));
        Self {
            read: SimReadHalf { key: key(Arc::clone(&state)), arrival },
            write: SimWriteHalf(key(state)),
        }
    }

    /// Returns the addresses of the peer and of this end.
    pub(crate) fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        let state = self.read.key.state.lock();
        let Some(connection) = state.connections.get(&self.read.key.id) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let end = self.read.key.end;
        Ok((connection.ends[1 - end].address, connection.ends[end].address))
    }

    pub(crate) fn into_split(self) -> (SimReadHalf, SimWriteHalf) {
        (self.read, self.write)
    }
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EndKey { id, end, .. } = self.read.key;
        f.debug_struct("SimStream").field("id", &id).field("end", &end).finish()
    }
}

impl AsyncRead for SimReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match this.key.read(context.waker(), buffer) {
                ReadOutcome::Ready(result, wakers) => {
                    wakers.into_iter().for_each(Waker::wake);
                    return Poll::Ready(result);
                }
                ReadOutcome::Wait(None) => return Poll::Pending,
                ReadOutcome::Wait(Some(until)) => {
                    this.arrival.as_mut().reset(until);
                    if this.arrival.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

enum ReadOutcome {
    Ready(io::Result<()>, Vec<Waker>),
    /// Wait until the time, or until the stored waker is woken.
    Wait(Option<Instant>),
}

impl EndKey {
    fn read(&self, waker: &Waker, buffer: &mut ReadBuf<'_>) -> ReadOutcome {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(connection) = state.connections.get_mut(&self.id) else {
            return ReadOutcome::Ready(Ok(()), Vec::new());
        };
        if connection.is_reset {
            return ReadOutcome::Ready(Err(io::ErrorKind::ConnectionReset.into()), Vec::new());
        }
        let now = Instant::now();
        let (from, to) = (connection.ip(1 - self.end), connection.ip(self.end));
        let is_paused = state.paused.contains(&to);
        let blocked_since = state.blocked.get(&(from, to)).copied();
        let is_crashed = state.crashed.contains(&from) || state.crashed.contains(&to);
        let pipe = &mut connection.pipes[1 - self.end];
        let Some(segment) = pipe.segments.front_mut() else {
            pipe.reader = Some(waker.clone());
            return ReadOutcome::Wait(None);
        };
        // Bytes that arrived before the partition are in the buffer of the receiver.
        let is_held = is_crashed || blocked_since.is_some_and(|since| segment.arrival >= since);
        if is_held || is_paused {
            let count =
                if is_held { &mut state.faults.held_reads } else { &mut state.faults.paused_reads };
            *count += 1;
            pipe.reader = Some(waker.clone());
            return ReadOutcome::Wait(None);
        }
        if segment.arrival > now {
            pipe.reader = Some(waker.clone());
            return ReadOutcome::Wait(Some(segment.arrival));
        }
        if pipe.receiver_free > now {
            state.faults.slow_reads += 1;
            pipe.reader = Some(waker.clone());
            return ReadOutcome::Wait(Some(pipe.receiver_free));
        }
        match &mut segment.content {
            SegmentContent::Data(bytes) => {
                let count = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..count]);
                bytes.advance(count);
                if bytes.is_empty() {
                    pipe.segments.pop_front();
                }
                pipe.buffered -= count;
                let rate = state.read_rates.get(&to).copied();
                pipe.receiver_free = now + transmission_time(count, rate);
                let wakers = pipe.writer.take().into_iter().collect();
                state.record(&TraceEvent::Read { id: self.id, end: self.end, count });
                ReadOutcome::Ready(Ok(()), wakers)
            }
            // The end of the stream stays, so that later reads find it, too.
            SegmentContent::End => {
                state.record(&TraceEvent::ReadEnd { id: self.id, end: self.end });
                ReadOutcome::Ready(Ok(()), Vec::new())
            }
            SegmentContent::Reset => {
                let wakers = state.reset(self.id);
                ReadOutcome::Ready(Err(io::ErrorKind::ConnectionReset.into()), wakers)
            }
        }
    }

    fn write(&self, waker: &Waker, bytes: &[u8]) -> Poll<io::Result<(usize, Option<Waker>)>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(connection) = state.connections.get(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if connection.is_reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !connection.ends[self.end].is_write_open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let now = Instant::now();
        let (from, to) = (connection.ip(self.end), connection.ip(1 - self.end));
        let peer = &connection.ends[1 - self.end];
        if (!peer.is_read_open || peer.is_stale) && !state.crashed.contains(&to) {
            // The peer responds with a reset, which arrives one round trip later.
            let is_stale = peer.is_stale;
            let reset_at = now + state.latency(from, to) + state.latency(to, from);
            let count = if is_stale {
                &mut state.faults.stale_resets
            } else {
                &mut state.faults.unread_resets
            };
            *count += 1;
            let waker = self.push(state, 1 - self.end, reset_at, SegmentContent::Reset);
            return Poll::Ready(Ok((bytes.len(), waker)));
        }
        let capacity = BUFFER_BYTES - connection.pipes[self.end].buffered;
        if capacity == 0 {
            let pipe = self.connection(state).map(|one| &mut one.pipes[self.end]);
            pipe.into_iter().for_each(|pipe| pipe.writer = Some(waker.clone()));
            return Poll::Pending;
        }
        let mut count = bytes.len().min(capacity);
        if count > 1 && state.random.u32(0..SHORT_WRITE_ODDS) == 0 {
            count = state.random.usize(1..count);
            state.faults.short_writes += 1;
        }
        let busy = state.transmission_time(from, to, count);
        let latency = state.latency(from, to);
        let Some(connection) = self.connection(state) else { return Poll::Pending };
        let pipe = &mut connection.pipes[self.end];
        pipe.sender_free = pipe.sender_free.max(now) + busy;
        let content = SegmentContent::Data(Bytes::copy_from_slice(&bytes[..count]));
        let reader = pipe.push(pipe.sender_free + latency, content);
        state.record(&TraceEvent::Written { id: self.id, end: self.end, count });
        Poll::Ready(Ok((count, reader)))
    }

    fn connection<'a>(&self, state: &'a mut SimState) -> Option<&'a mut SimConnection> {
        state.connections.get_mut(&self.id)
    }

    fn push(
        &self,
        state: &mut SimState,
        end: usize,
        arrival: Instant,
        content: SegmentContent,
    ) -> Option<Waker> {
        self.connection(state)?.pipes[end].push(arrival, content)
    }

    /// Ends the sending direction.
    fn shut_down(&self) {
        let reader = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let Some(connection) = self.connection(state) else { return };
            let end = &mut connection.ends[self.end];
            if !std::mem::replace(&mut end.is_write_open, false) || connection.is_reset {
                return;
            }
            let (from, to) = (connection.ip(self.end), connection.ip(1 - self.end));
            let arrival = Instant::now() + state.latency(from, to);
            self.push(state, self.end, arrival, SegmentContent::End)
        };
        reader.into_iter().for_each(Waker::wake);
    }

    /// Handles that a half of this end was dropped.
    fn on_half_dropped(&self) {
        let waker = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let Some(connection) = self.connection(state) else { return };
            let end = &connection.ends[self.end];
            if end.is_read_open || end.is_write_open {
                return;
            }
            let (from, to) = (connection.ip(self.end), connection.ip(1 - self.end));
            let has_unread = connection.pipes[1 - self.end].has_unread_bytes();
            let is_reset = connection.is_reset;
            let is_unused = connection.is_unused();
            state.record(&TraceEvent::Closed { id: self.id, end: self.end });
            if is_unused {
                state.connections.remove(&self.id);
                return;
            }
            if is_reset || !has_unread {
                return;
            }
            // As TCP: closing a socket with unread bytes resets the connection.
            state.faults.unread_resets += 1;
            let now = Instant::now();
            let arrival = now + state.latency(from, to);
            let Some(connection) = self.connection(state) else { return };
            connection.pipes[1 - self.end].discard();
            connection.pipes[self.end].discard_unarrived(now);
            connection.pipes[self.end].push(arrival, SegmentContent::Reset)
        };
        waker.into_iter().for_each(Waker::wake);
    }
}

impl AsyncWrite for SimWriteHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.write(context.waker(), bytes).map_ok(|(count, reader)| {
            reader.into_iter().for_each(Waker::wake);
            count
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.shut_down();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimWriteHalf {
    fn drop(&mut self) {
        self.0.shut_down();
        self.0.on_half_dropped();
    }
}

impl Drop for SimReadHalf {
    fn drop(&mut self) {
        if let Some(connection) = self.key.connection(&mut self.key.state.lock()) {
            connection.ends[self.key.end].is_read_open = false;
        }
        self.key.on_half_dropped();
    }
}

//! The state of one simulated connection: two byte pipes, one for each direction.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::task::Waker;

use bytes::Bytes;
use tokio::time::Instant;

/// The bytes that each direction buffers, similar to socket buffers.
pub(super) const BUFFER_BYTES: usize = 256 << 10;

/// A connection. End 0 is the client, end 1 the server.
pub(super) struct SimConnection {
    pub(super) ends: [SimEnd; 2],
    /// `pipes[end]` contains what this end has written.
    pub(super) pipes: [Pipe; 2],
    pub(super) is_reset: bool,
}

pub(super) struct SimEnd {
    pub(super) address: SocketAddr,
    pub(super) is_read_open: bool,
    pub(super) is_write_open: bool,
    /// The host has crashed and restarted, so that it does not know the connection.
    pub(super) is_stale: bool,
}

/// One direction of a connection.
pub(super) struct Pipe {
    pub(super) segments: VecDeque<Segment>,
    pub(super) buffered: usize,
    /// No later segment arrives before this time.
    pub(super) last_arrival: Instant,
    /// The sender is busy with earlier bytes until then, if bandwidth is limited.
    pub(super) sender_free: Instant,
    /// The receiver reads no more before this time, if its rate is limited.
    pub(super) receiver_free: Instant,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) struct Segment {
    pub(super) arrival: Instant,
    pub(super) content: SegmentContent,
}

pub(super) enum SegmentContent {
    Data(Bytes),
    End,
    Reset,
}

impl SimConnection {
    pub(super) fn new(client: SocketAddr, server: SocketAddr, now: Instant) -> Self {
        let end =
            |address| SimEnd { address, is_read_open: true, is_write_open: true, is_stale: false };
        Self {
            ends: [end(client), end(server)],
            pipes: [Pipe::new(now), Pipe::new(now)],
            is_reset: false,
        }
    }

    pub(super) fn ip(&self, end: usize) -> IpAddr {
        self.ends[end].address.ip()
    }

    /// Returns the end at `ip`, if the connection has one there.
    pub(super) fn end_at(&self, ip: IpAddr) -> Option<usize> {
        (0..2).find(|end| self.ip(*end) == ip)
    }

    /// Returns whether one end is at each of the two addresses.
    pub(super) fn is_between(&self, first: IpAddr, second: IpAddr) -> bool {
        let ips = (self.ip(0), self.ip(1));
        ips == (first, second) || ips == (second, first)
    }

    /// Fails all later reads and writes of both ends, and returns the tasks to wake.
    pub(super) fn reset(&mut self) -> Vec<Waker> {
        self.is_reset = true;
        let mut wakers = Vec::new();
        for pipe in &mut self.pipes {
            pipe.discard();
            wakers.extend(pipe.reader.take().into_iter().chain(pipe.writer.take()));
        }
        wakers
    }

    /// Returns whether no end has an open half.
    pub(super) fn is_unused(&self) -> bool {
        self.ends.iter().all(|end| !end.is_read_open && !end.is_write_open)
    }
}

impl Pipe {
    fn new(now: Instant) -> Self {
        Self {
            segments: VecDeque::new(),
            buffered: 0,
            last_arrival: now,
            sender_free: now,
            receiver_free: now,
            reader: None,
            writer: None,
        }
    }

    pub(super) fn has_unread_bytes(&self) -> bool {
        self.buffered > 0
    }

    /// Drops everything that was not read.
    pub(super) fn discard(&mut self) {
        self.segments.clear();
        self.buffered = 0;
    }

    /// Drops the segments that have not arrived yet.
    pub(super) fn discard_unarrived(&mut self, now: Instant) {
        while self.segments.back().is_some_and(|segment| segment.arrival > now) {
            if let Some(Segment { content: SegmentContent::Data(bytes), .. }) =
                self.segments.pop_back()
            {
                self.buffered -= bytes.len();
            }
        }
        self.last_arrival = self.last_arrival.min(now);
    }

    /// Adds a segment that arrives at `arrival`, or later if an earlier one does.
    pub(super) fn push(&mut self, arrival: Instant, content: SegmentContent) -> Option<Waker> {
        if let SegmentContent::Data(bytes) = &content {
            self.buffered += bytes.len();
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.segments.push_back(Segment { arrival: self.last_arrival, content });
        self.reader.take()
    }
}

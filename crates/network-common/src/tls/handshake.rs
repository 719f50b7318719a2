//! rustls as a handshake, and then as the two filters of a connection.

use std::io::{self, BufRead, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{AlertDescription, CertificateError, Connection, Error};
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::{Handshake, HandshakeOutput};
use crate::error::BoxError;
use crate::session::{ByteFilter, CloseNotify, FilterOutput};

/// The types of TLS records (RFC 8446, 5.1): what a first byte may be.
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
/// What a full record holds (5.1).
const RECORD: usize = 16 << 10;

pub(super) struct TlsHandshake {
    connection: Connection,
    heard: bool,
    early: Vec<u8>,
    /// Given back when the handshake is over.
    _turn: Option<OwnedSemaphorePermit>,
}

impl TlsHandshake {
    pub(super) fn new(mut connection: Connection, turn: Option<OwnedSemaphorePermit>) -> Self {
        // The write queue has a limit of its own, before anything is sealed.
        connection.set_buffer_limit(None);
        Self { connection, heard: false, early: Vec::new(), _turn: turn }
    }
}

impl Handshake for TlsHandshake {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, BoxError> {
        if let (false, Some(first)) = (self.heard, input.first()) {
            self.heard = true;
            if !RECORD_TYPES.contains(first) {
                let text =
                    "the peer does not speak TLS, and spark.ssl.rpc.enabled allows nothing else";
                return Err(text.into());
            }
        }
        let result = open(&mut self.connection, input, |plain| self.early.extend_from_slice(plain));
        take_sealed(&mut self.connection, output)?;
        result?;
        Ok(!self.connection.is_handshaking())
    }

    fn into_output(self: Box<Self>) -> HandshakeOutput {
        let connection = Arc::new(Mutex::new(self.connection));
        HandshakeOutput {
            seal_filter: Box::new(TlsSeal(Arc::clone(&connection))),
            open_filter: Box::new(TlsOpen { connection, end_seen: false }),
            leftover: self.early,
        }
    }
}

/// Both directions share rustls' state; one task drives them, so nobody ever waits for the lock.
struct TlsSeal(Arc<Mutex<Connection>>);

impl ByteFilter for TlsSeal {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        let mut connection = self.0.lock();
        // One by one they stay in the cache, and in one piece of memory, while rustls copies them
        // to and fro.
        for record in input.chunks(RECORD) {
            connection.writer().write_all(record)?;
            take_sealed(&mut connection, output)?;
        }
        Ok(())
    }

    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let mut connection = self.0.lock();
        // After an error, the alert that says which goes out instead.
        connection.send_close_notify();
        // The output takes everything.
        let _ = take_sealed(&mut connection, output);
    }
}

struct TlsOpen {
    connection: Arc<Mutex<Connection>>,
    end_seen: bool,
}

impl ByteFilter for TlsOpen {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        self.end_seen |=
            open(&mut self.connection.lock(), input, |plain| output.extend_from_slice(plain))?;
        Ok(())
    }

    fn close_notify(&self) -> CloseNotify {
        if self.end_seen { CloseNotify::Received } else { CloseNotify::Pending }
    }
}

/// Takes in records and hands on what they hold; true: the peer has said that nothing follows.
fn open(
    connection: &mut Connection,
    mut input: &[u8],
    mut take: impl FnMut(&[u8]),
) -> Result<bool, BoxError> {
    loop {
        // Also without input: what came behind the handshake may wait.
        let state = connection.process_new_packets().map_err(with_hint)?;
        let mut left = state.plaintext_bytes_to_read();
        while left > 0 {
            let mut reader = connection.reader();
            let piece = reader.fill_buf()?;
            let count = piece.len();
            take(piece);
            reader.consume(count);
            left -= count;
        }
        // Behind the mark of the end nothing counts.
        if input.is_empty() || state.peer_has_closed() {
            return Ok(state.peer_has_closed());
        }
        connection.read_tls(&mut input)?;
    }
}

fn take_sealed(connection: &mut Connection, output: &mut dyn Write) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(output)?;
    }
    Ok(())
}

/// The same error with what can be done about it.
fn with_hint(error: Error) -> BoxError {
    let advice = match &error {
        // The signature is wrong if the trust store has another key under the name of the issuer.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "nothing in spark.ssl.rpc.trustStore vouches for it"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "spark.ssl.rpc.hostnameVerification decides whether names count",
        Error::NoCertificatesPresented => "spark.ssl.rpc.needClientAuth demands them of clients",
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => "the peer does not accept our certificate",
        Error::AlertReceived(
            AlertDescription::CertificateRequired
            // TLS 1.2 has no better word for it.
            | AlertDescription::HandshakeFailure,
        ) => "the peer demands a certificate of ours, or there is no common spark.ssl.rpc.enabledAlgorithms",
        Error::PeerIncompatible(_) | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "spark.ssl.rpc.protocol and spark.ssl.rpc.enabledAlgorithms must fit those of the peer"
        }
        _ => return error.into(),
    };
    Box::new(ErrorWithHint { error, advice })
}

#[derive(Debug, thiserror::Error)]
#[error("{error} ({advice})")]
struct ErrorWithHint {
    #[source]
    error: Error,
    advice: &'static str,
}

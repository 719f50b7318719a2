//! rustls as the handshake of a connection, and then as its two byte filters.
//!
//! `connection::handshake` runs [`TlsHandshake`] and installs the filters that it returns.

use std::io::{self, BufRead, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{AlertDescription, CertificateError, Connection, Error};
use tokio::sync::OwnedSemaphorePermit;

use crate::connection::{Handshake, HandshakeOutput, TLS_ALERT};
use crate::error::BoxError;
use crate::session::{ByteFilter, CloseNotify, FilterOutput};

/// The possible first bytes of a TLS record (RFC 8446, section 5.1).
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
/// The maximum plaintext of a TLS record in bytes (RFC 8446, section 5.1).
const RECORD: usize = 16 << 10;

/// The length of the header of a record in bytes.
const RECORD_HEADER: usize = 5;

/// One handshake of either side.
pub(super) struct TlsHandshake {
    connection: Connection,
    has_received: bool,
    /// Plaintext that arrived together with the end of the handshake.
    leftover: Vec<u8>,
    records: RecordBoundaries,
    /// Limits concurrent handshakes; released when this value is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl TlsHandshake {
    pub(super) fn new(mut connection: Connection, permit: Option<OwnedSemaphorePermit>) -> Self {
        // The write queue already limits the bytes that reach rustls.
        connection.set_buffer_limit(None);
        Self {
            connection,
            has_received: false,
            leftover: Vec::new(),
            records: RecordBoundaries::default(),
            _permit: permit,
        }
    }
}

impl Handshake for TlsHandshake {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<bool, BoxError> {
        if let (false, Some(first)) = (self.has_received, input.first()) {
            self.has_received = true;
            if !RECORD_TYPES.contains(first) {
                output.extend_from_slice(&TLS_ALERT);
                let text = "the peer does not speak TLS, which spark.ssl.rpc.enabled=true requires";
                return Err(text.into());
            }
        }
        self.records.pass(input);
        let result = open_records(&mut self.connection, input, |plain| {
            self.leftover.extend_from_slice(plain);
        });
        // After an error this writes the alert that reports the reason to the peer.
        write_records(&mut self.connection, output)?;
        result?;
        Ok(!self.connection.is_handshaking())
    }

    fn into_output(self: Box<Self>) -> HandshakeOutput {
        let connection = Arc::new(Mutex::new(self.connection));
        HandshakeOutput {
            seal_filter: Box::new(TlsSeal(Arc::clone(&connection))),
            open_filter: Box::new(TlsOpen {
                connection,
                is_close_notify_received: false,
                records: self.records,
            }),
            leftover: self.leftover,
        }
    }
}

/// The filter that encrypts.
///
/// Both filters share the state of rustls. One task drives both, so the lock is never contended.
struct TlsSeal(Arc<Mutex<Connection>>);

impl ByteFilter for TlsSeal {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        let mut connection = self.0.lock();
        // One record at a time stays in the CPU cache and in one buffer of rustls, which copies it.
        for record in input.chunks(RECORD) {
            connection.writer().write_all(record)?;
            write_records(&mut connection, output)?;
        }
        Ok(())
    }

    fn finish(&mut self, output: &mut FilterOutput<'_>) {
        let mut connection = self.0.lock();
        // After an error rustls sends the error's alert instead.
        connection.send_close_notify();
        // Cannot fail, because `FilterOutput` accepts all bytes.
        let _ = write_records(&mut connection, output);
    }
}

/// The filter that decrypts.
struct TlsOpen {
    connection: Arc<Mutex<Connection>>,
    is_close_notify_received: bool,
    /// Followed only until the first call of `transform`: later no filter is installed.
    records: RecordBoundaries,
}

/// Finds the ends of the records in a byte stream.
#[derive(Debug, Default)]
struct RecordBoundaries {
    header: [u8; RECORD_HEADER],
    header_len: usize,
    /// Missing bytes of the record behind its header.
    missing: usize,
}

impl RecordBoundaries {
    /// Returns the number of bytes of `input` that belong to the current record.
    fn next_record(&mut self, input: &[u8]) -> usize {
        let mut used = 0;
        if self.missing == 0 {
            used = (RECORD_HEADER - self.header_len).min(input.len());
            self.header[self.header_len..][..used].copy_from_slice(&input[..used]);
            self.header_len += used;
            if self.header_len < RECORD_HEADER {
                return used;
            }
            self.header_len = 0;
            self.missing = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
        }
        let count = self.missing.min(input.len() - used);
        self.missing -= count;
        used + count
    }

    /// Follows all records of `input`.
    fn pass(&mut self, mut input: &[u8]) {
        while !input.is_empty() {
            input = &input[self.next_record(input)..];
        }
    }
}

impl ByteFilter for TlsOpen {
    fn transform(&mut self, input: &[u8], output: &mut FilterOutput<'_>) -> Result<(), BoxError> {
        self.is_close_notify_received |=
            open_records(&mut self.connection.lock(), input, |plain| {
                output.extend_from_slice(plain);
            })?;
        Ok(())
    }

    fn transform_record(
        &mut self,
        input: &[u8],
        output: &mut FilterOutput<'_>,
    ) -> Result<usize, BoxError> {
        let count = self.records.next_record(input);
        self.transform(&input[..count], output)?;
        Ok(count)
    }

    fn close_notify(&self) -> CloseNotify {
        if self.is_close_notify_received { CloseNotify::Received } else { CloseNotify::Pending }
    }
}

/// Decrypts records and passes on their plaintext; returns true after the peer's `close_notify`.
fn open_records(
    connection: &mut Connection,
    mut input: &[u8],
    mut on_plaintext: impl FnMut(&[u8]),
) -> Result<bool, BoxError> {
    loop {
        // Called without input, too: records may have arrived together with the handshake.
        let state = connection.process_new_packets().map_err(with_hint)?;
        let mut remaining = state.plaintext_bytes_to_read();
        while remaining > 0 {
            let mut reader = connection.reader();
            let plain = reader.fill_buf()?;
            let count = plain.len();
            on_plaintext(plain);
            reader.consume(count);
            remaining -= count;
        }
        // Bytes after `close_notify` are ignored (RFC 8446, section 6.1).
        if input.is_empty() || state.peer_has_closed() {
            return Ok(state.peer_has_closed());
        }
        connection.read_tls(&mut input)?;
    }
}

/// Writes all records that rustls has produced.
fn write_records(connection: &mut Connection, output: &mut dyn Write) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(output)?;
    }
    Ok(())
}

/// Adds to an error the setting or the reason that a user should look at.
fn with_hint(error: Error) -> BoxError {
    let hint = match &error {
        // The signature is wrong if the trust store has another key under the name of the issuer.
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "no certificate in spark.ssl.rpc.trustStore verifies the peer's certificate",
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the server's certificate is for another host (spark.ssl.rpc.hostnameVerification)",
        Error::NoCertificatesPresented => {
            "the client has no certificate, which spark.ssl.rpc.needClientAuth=true requires"
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired,
        ) => "the peer does not accept the certificate of this process",
        // TLS 1.2 has only HandshakeFailure for a missing certificate.
        Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => {
            "the peer requires a certificate of this process, or there is no common cipher suite \
             (spark.ssl.rpc.enabledAlgorithms)"
        }
        Error::AlertReceived(AlertDescription::UnexpectedMessage) => {
            "the peer does not expect TLS (is spark.ssl.rpc.enabled=true there?)"
        }
        Error::PeerIncompatible(_) | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the peers have no TLS version or cipher suite in common (spark.ssl.rpc.protocol, \
             spark.ssl.rpc.enabledAlgorithms)"
        }
        _ => return error.into(),
    };
    Box::new(ErrorWithHint { hint, error })
}

/// An error of rustls behind a text that names the setting to look at.
#[derive(Debug, thiserror::Error)]
#[error("{hint}")]
struct ErrorWithHint {
    hint: &'static str,
    #[source]
    error: Error,
}

//! The codec for the wire format, against bytes of Spark and the rows of Spark's own suites (PROTO,
//! FRAME, ENC, MBM).

mod decoding;
mod encoders;
mod frames;
mod malformed;
mod messages;
mod samples;
mod splits;

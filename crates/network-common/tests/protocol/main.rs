//! The wire format from the outside, against `spark/wire.md` and Spark's own suites (rows PROTO,
//! FRAME, ENC, MBM).

mod decoding;
mod encoders;
mod frames;
mod malformed;
mod messages;
mod samples;
mod splits;

//! The codec for the wire format, against bytes of Spark and the rows of the areas `wire`, `proto`,
//! `frame`, `enc` and `mbm`.

mod decoding;
mod encoders;
mod frames;
mod malformed;
mod messages;
mod samples;
mod splits;

//! The programs are in the folder `examples` of this crate.

#![forbid(unsafe_code)]

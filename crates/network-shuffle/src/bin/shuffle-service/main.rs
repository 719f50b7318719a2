//! The program `shuffle-service`.
fn main() {}

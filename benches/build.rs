//! Generates the messages of the benches.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(&["proto/bench.proto"], &["proto"])
}

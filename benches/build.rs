//! Generates the messages of `proto/bench.proto`.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(&["proto/bench.proto"], &["proto"])
}

//! Generates the messages of the plays.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(&["work.proto"], &["proto"])
}

//! Generates the messages of the guide.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(&["hello.proto", "cluster.proto"], &["protos"])
}

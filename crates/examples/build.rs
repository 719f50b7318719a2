//! Generates the messages of the examples.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(
        &["hello.proto", "heartbeat.proto", "standalone.proto"],
        &["../../proto"],
    )
}

//! Generates the envelope, and the messages of the examples and tests, which find them in this
//! package's OUT_DIR.

fn main() -> Result<(), rpc_build::Error> {
    rpc_build::compile_protos(
        &[
            "proto/rpc_envelope.proto",
            "proto/hello.proto",
            "proto/heartbeat.proto",
            "proto/standalone.proto",
            "tests/protos/coverage.proto",
            "tests/protos/random.proto",
            "tests/protos/refs.proto",
        ],
        &["proto", "tests/protos"],
    )
}

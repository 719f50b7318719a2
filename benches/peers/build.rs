//! Generates tonic's client and server from `proto/echo.proto`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/echo.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

//! A driver serves files, a jar and a directory to an executor.
//!
//! Run it with `cargo run --release --features files --example file_server`. The driver starts the
//! executor as a second process and passes it the URIs. The executor downloads all files into a
//! directory of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use rpc_core::{Download, RpcEnv};
use tokio::fs::{self, File};
use tokio::io::{AsyncWriteExt, BufWriter};

/// The length of the largest file.
const LARGE: usize = 256 << 20;

/// Creates the files, registers them, and returns their URIs.
async fn serve_files(env: &RpcEnv, files: &Path) -> anyhow::Result<Vec<String>> {
    let (model, jar, classes) =
        (files.join("model.bin"), files.join("app.jar"), files.join("classes"));
    fs::write(&model, vec![7; LARGE]).await?;
    fs::write(&jar, vec![1; LARGE / 16]).await?;
    fs::create_dir_all(classes.join("org")).await?;
    fs::write(classes.join("org/Main.class"), "not a real class").await?;

    let server = env.file_server();
    let classes = server.add_directory("/classes", classes).await?;
    let uris = vec![
        server.add_file(model).await?,
        server.add_jar(jar).await?,
        format!("{classes}/org/Main.class"),
    ];
    for uri in &uris {
        println!("driver: serves {uri}");
    }
    Ok(uris)
}

async fn download(uris: &[String], into: &Path) -> anyhow::Result<()> {
    // The executor serves nothing, so its environment need not listen.
    let env = RpcEnv::builder("executor").client_mode().start().await?;
    for uri in uris {
        let name = uri.rsplit('/').next().context("the URI has no path")?;
        save(env.open_channel(uri).await?, &into.join(name)).await?;
    }
    env.shutdown().await;
    Ok(())
}

async fn save(mut download: Download, path: &Path) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path).await?);
    while let Some(piece) = download.next_piece().await {
        file.write_all(&piece?).await?;
    }
    file.flush().await?;
    println!("executor: {} has {} bytes", path.display(), download.len());
    Ok(())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [into, uris @ ..] = &arguments[..] {
        return download(uris, Path::new(into)).await;
    }

    let (files, into) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let env = RpcEnv::builder("driver").bind("127.0.0.1:0").start().await?;
    let uris = serve_files(&env, files.path()).await?;
    let mut executor = Command::new(std::env::current_exe()?);
    executor.arg(into.path()).args(&uris);
    let status = tokio::task::spawn_blocking(move || executor.status()).await??;
    ensure!(status.success(), "the executor exited with {status}");

    ensure!(
        fs::read(into.path().join("model.bin")).await? == vec![7; LARGE],
        "the downloaded model differs from the original"
    );
    println!("driver: the executor has what was offered");
    env.shutdown().await;
    Ok(())
}

//! [`RpcEnvFileServer`], to which files, jars and directories are added.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use network_common::run_blocking;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::registry::{FILE_SEGMENTS, FileRegistry};
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};

/// The characters to encode in one segment of a path; the others stand for themselves.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b',')
    .remove(b';')
    .remove(b':')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'=')
    .remove(b'@');
const PATH: &AsciiSet = &SEGMENT.remove(b'/');

/// Offers files, jars and directories for download; from [`RpcEnv::file_server`].
///
/// Any environment that can connect downloads them by [`RpcEnv::open_channel`]; a Spark process
/// does so by `NettyRpcEnv.openChannel`. Cloning is cheap.
///
/// Each `add` returns the URI to download from: `spark://host:port/files/name`, `.../jars/name`, or
/// for a directory the prefix of the URIs of its files. A file is read when it is downloaded, so a
/// changed file is sent as it is then. If a file becomes shorter while it is sent, the download
/// fails.
///
/// Of a directory, only the files below it are served: `..`, absolute paths, and symbolic links
/// that leave it or are absolute find nothing.
///
/// In an environment that does not listen, each `add` returns [`ErrorKind::Config`].
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// # let path = directory.path().join("model.bin");
/// # std::fs::write(&path, "weights")?;
/// use rpc_core::RpcEnv;
/// use tokio::io::AsyncReadExt;
///
/// let server = RpcEnv::builder("server").bind("127.0.0.1:0").start().await?;
/// let uri = server.file_server().add_file(path).await?;
///
/// let client = RpcEnv::builder("client").client_mode().start().await?;
/// let mut content = String::new();
/// client.open_channel(&uri).await?.read_to_string(&mut content).await?;
/// assert_eq!(content, "weights");
/// # client.shutdown().await;
/// # server.shutdown().await;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// Paths are checked on blocking threads. Dropping a future before it completes adds nothing.
///
/// [`RpcEnv::open_channel`]: crate::RpcEnv::open_channel
/// [`RpcEnv::file_server`]: crate::RpcEnv::file_server
#[derive(Clone, Debug)]
pub struct RpcEnvFileServer {
    pub(crate) registry: Arc<FileRegistry>,
    pub(crate) env: String,
    pub(crate) address: Option<RpcAddress>,
}

impl RpcEnvFileServer {
    /// Offers one file under its name and returns its URI.
    ///
    /// Adding the same file again has no effect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the path does not exist or is not a regular file, if its name is
    /// not Unicode, or if another file of that name is offered already.
    pub async fn add_file(&self, path: impl Into<PathBuf>) -> Result<String, RpcError> {
        self.add("files", path.into()).await
    }

    /// Offers one jar under its name, as [`add_file`](Self::add_file) does for a file.
    ///
    /// # Errors
    ///
    /// Those of [`add_file`](Self::add_file).
    pub async fn add_jar(&self, path: impl Into<PathBuf>) -> Result<String, RpcError> {
        self.add("jars", path.into()).await
    }

    /// Offers all files below a directory and returns the prefix of their URIs.
    ///
    /// `uri` is the path of that prefix, such as `/classes`. It may have several segments: a file
    /// `c` in a directory at `/a/b` is `/a/b/c`. If several directories match a request, the one
    /// with the longest prefix is used. Spark accepts several segments, but finds no file below
    /// them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the directory does not exist, if `uri` has no segments or begins
    /// with `/files` or `/jars`, or if another directory is offered there. Dot segments and double
    /// slashes are resolved before.
    pub async fn add_directory(
        &self,
        uri: &str,
        path: impl Into<PathBuf>,
    ) -> Result<String, RpcError> {
        let (prefix, offered, path) = self.directory(uri, path.into()).await?;
        if self.registry.add_directory(prefix.clone(), path) {
            Ok(offered)
        } else {
            Err(RpcError::new(ErrorKind::Config, format!("URI '/{prefix}' already registered.")))
        }
    }

    /// Offers a directory unless another one is offered at `uri`.
    ///
    /// # Errors
    ///
    /// Those of [`add_directory`](Self::add_directory), except that for a `uri` in use.
    pub async fn add_directory_if_absent(
        &self,
        uri: &str,
        path: impl Into<PathBuf>,
    ) -> Result<String, RpcError> {
        let (prefix, offered, path) = self.directory(uri, path.into()).await?;
        self.registry.add_directory(prefix, path);
        Ok(offered)
    }

    /// Removes the file `name`, and returns whether it was offered.
    ///
    /// `name` is the last part of its path. Active downloads of it continue.
    pub fn remove_file(&self, name: &str) -> bool {
        self.registry.remove(&format!("files/{name}"))
    }

    /// Removes the jar `name`, as [`remove_file`](Self::remove_file) does for a file.
    pub fn remove_jar(&self, name: &str) -> bool {
        self.registry.remove(&format!("jars/{name}"))
    }

    async fn add(&self, segment: &str, path: PathBuf) -> Result<String, RpcError> {
        let name = path.file_name().map(|name| name.to_str().map(str::to_owned));
        let shown = path.display().to_string();
        let path = canonical(path, Path::is_file, "it is not a regular file").await?;
        let Some(Some(name)) = name else {
            let text = format!("the name of {shown} is not Unicode, so no URI can carry it");
            return Err(RpcError::new(ErrorKind::Config, text));
        };
        let key = format!("{segment}/{name}");
        let uri = self.uri(&key)?;
        let offered = self.registry.add(key, &path);
        if offered == path {
            return Ok(uri);
        }
        let text = format!(
            "File {name} was already registered with a different path (old path = {}, new path = {})",
            offered.display(),
            path.display()
        );
        Err(RpcError::new(ErrorKind::Config, text))
    }

    /// Returns the prefix to register, the URI to return and the canonical path.
    async fn directory(
        &self,
        uri: &str,
        path: PathBuf,
    ) -> Result<(String, String, PathBuf), RpcError> {
        let prefix = directory_prefix(uri)?;
        let offered = self.uri(&prefix)?;
        let path = canonical(path, Path::is_dir, "it is not a directory").await?;
        Ok((prefix, offered, path))
    }

    fn uri(&self, path: &str) -> Result<String, RpcError> {
        let Some(address) = &self.address else {
            let text = format!(
                "the environment {} does not listen, so it cannot offer files for download",
                self.env
            );
            return Err(RpcError::new(ErrorKind::Config, text));
        };
        Ok(format!("{}/{}", address.to_spark_url(), utf8_percent_encode(path, PATH)))
    }
}

/// Returns the canonical path of `path`, or an error if `accept` returns false for it.
async fn canonical(
    path: PathBuf,
    accept: fn(&Path) -> bool,
    otherwise: &'static str,
) -> Result<PathBuf, RpcError> {
    let shown = path.display().to_string();
    let resolve = move || {
        let canonical = path.canonicalize()?;
        if accept(&canonical) {
            Ok(canonical)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, otherwise))
        }
    };
    run_blocking(resolve).await.map_err(|error| {
        RpcError::new(ErrorKind::Config, format!("cannot offer {shown} for download"))
            .with_source(error)
    })
}

/// Returns the path of a directory URI with dot segments resolved and outer slashes removed.
fn directory_prefix(uri: &str) -> Result<String, RpcError> {
    let config_error = |why: &str| Err(RpcError::new(ErrorKind::Config, why.to_owned()));
    let Ok(path) = percent_decode_str(uri).decode_utf8() else {
        return config_error(&format!("the directory URI {uri} is not UTF-8"));
    };
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name),
        }
    }
    match segments.first() {
        None => config_error(&format!(
            "the directory URI '{uri}' has no segments; an example is /classes"
        )),
        Some(first) if FILE_SEGMENTS.contains(first) => {
            config_error("Directory URI cannot be /files nor /jars.")
        }
        Some(_) => Ok(segments.join("/")),
    }
}

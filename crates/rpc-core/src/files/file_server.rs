//! What an environment offers for download: files, jars and directories (`rpc 10`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::registry::FILE_SEGMENTS;
use super::registry::FileRegistry;
use crate::address::RpcAddress;
use crate::error::{ErrorKind, RpcError};

/// What stands for itself in one segment of a URI's path.
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

/// Offers files, jars and directories to whoever can reach the environment, for
/// [`RpcEnv::open_channel`] there and for Spark's own (`rpc 10`). From [`RpcEnv::file_server`];
/// cheap to clone.
///
/// Each `add` returns the URI to download from: `spark://host:port/files/name`, `.../jars/name`, or
/// of a directory the prefix of its files' URIs. Contents are read when they are asked for, so a
/// file that changes is served as it is then; one that becomes shorter while it is sent breaks its
/// download off with an error.
///
/// Of a directory everything below it is served and nothing else, whatever a peer asks for: `..`,
/// absolute paths and symbolic links that lead out of it find nothing, nor do symbolic links to
/// absolute paths.
///
/// In an environment that does not listen, each `add` is an error of kind [`ErrorKind::Config`].
///
/// # Cancel safety
///
/// Paths are looked at on blocking threads. When a future is dropped before it is ready, nothing
/// has been added.
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
    /// Offers one file under its name. Adding the same file again changes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if it is not there or no regular file, if its name is not Unicode, or
    /// if another file of that name is offered already.
    pub async fn add_file(&self, path: impl Into<PathBuf>) -> Result<String, RpcError> {
        self.add("files", path.into()).await
    }

    /// Offers one file under its name, among the jars. Otherwise as [`add_file`](Self::add_file).
    ///
    /// # Errors
    ///
    /// Those of [`add_file`](Self::add_file).
    pub async fn add_jar(&self, path: impl Into<PathBuf>) -> Result<String, RpcError> {
        self.add("jars", path.into()).await
    }

    /// Offers everything below a directory, under `uri`: the path of a URI such as `/classes`.
    ///
    /// `uri` may have several segments (a directory at `/a/b` gives `/a/b/c`); the longest that is
    /// offered counts. Spark takes such a `uri` too, but never finds what is below it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] if the directory is not there, if `uri` has no segments, begins with
    /// those of files or jars, or is taken. Dot segments and double slashes in it are resolved
    /// first.
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

    /// The same, but if `uri` is taken the directory that has it stays and there is no error.
    ///
    /// # Errors
    ///
    /// The others of [`add_directory`](Self::add_directory).
    pub async fn add_directory_if_absent(
        &self,
        uri: &str,
        path: impl Into<PathBuf>,
    ) -> Result<String, RpcError> {
        let (prefix, offered, path) = self.directory(uri, path.into()).await?;
        self.registry.add_directory(prefix, path);
        Ok(offered)
    }

    /// Offers the file no longer; `name` is the last part of its path. Downloads under way go on.
    /// Returns whether it was offered.
    pub fn remove_file(&self, name: &str) -> bool {
        self.registry.remove(&format!("files/{name}"))
    }

    /// The same of a jar.
    pub fn remove_jar(&self, name: &str) -> bool {
        self.registry.remove(&format!("jars/{name}"))
    }

    async fn add(&self, segment: &str, path: PathBuf) -> Result<String, RpcError> {
        let name = path.file_name().map(|name| name.to_str().map(str::to_owned));
        let shown = path.display().to_string();
        let path = canonical(path, Path::is_file, "no regular file").await?;
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

    /// The prefix to register, the URI to tell and the real path.
    async fn directory(
        &self,
        uri: &str,
        path: PathBuf,
    ) -> Result<(String, String, PathBuf), RpcError> {
        let prefix = directory_prefix(uri)?;
        let offered = self.uri(&prefix)?;
        let path = canonical(path, Path::is_dir, "no directory").await?;
        Ok((prefix, offered, path))
    }

    fn uri(&self, path: &str) -> Result<String, RpcError> {
        let Some(address) = &self.address else {
            let text = format!(
                "the environment {} does not listen, so nobody could download files",
                self.env
            );
            return Err(RpcError::new(ErrorKind::Config, text));
        };
        Ok(format!("{}/{}", address.to_spark_url(), utf8_percent_encode(path, PATH)))
    }
}

/// The real path of what is at `path`, if it is what `accept` wants.
async fn canonical(
    path: PathBuf,
    accept: fn(&Path) -> bool,
    otherwise: &'static str,
) -> Result<PathBuf, RpcError> {
    let shown = path.display().to_string();
    let look = move || {
        let real = path.canonicalize()?;
        if accept(&real) {
            Ok(real)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, otherwise))
        }
    };
    let looked =
        tokio::task::spawn_blocking(look).await.map_err(io::Error::other).and_then(|real| real);
    looked.map_err(|error| {
        RpcError::new(ErrorKind::Config, format!("cannot offer {shown} for download: {error}"))
            .with_source(error)
    })
}

/// The path that `uri` stands for: dot segments resolved, no slash before or behind it.
fn directory_prefix(uri: &str) -> Result<String, RpcError> {
    let bad = |why: &str| Err(RpcError::new(ErrorKind::Config, why.to_owned()));
    let Ok(path) = percent_decode_str(uri).decode_utf8() else {
        return bad(&format!("the directory URI {uri} is not UTF-8"));
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
        None => bad(&format!("the directory URI '{uri}' has no segments, as /classes has")),
        Some(first) if FILE_SEGMENTS.contains(first) => {
            bad("Directory URI cannot be /files nor /jars.")
        }
        Some(_) => Ok(segments.join("/")),
    }
}

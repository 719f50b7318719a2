//! Downloads the jars of Spark releases, which are part of the package `pyspark` of PyPI.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::cache::{self, Cache};
use super::release::Release;
use crate::process;

/// Enough for 450 MB over a slow network.
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const UNPACK_TIMEOUT: Duration = Duration::from_secs(10 * 60);
const VERSION_TIMEOUT: Duration = Duration::from_secs(60);

/// The prefix of the jar with Spark's transport.
const TRANSPORT: &str = "spark-network-common_";

/// The file name prefixes of the jars that the transport of any release needs at run time.
const WANTED: [&str; 15] = [
    TRANSPORT,
    "spark-common-utils",
    "netty-",
    "guava-",
    "failureaccess-",
    "metrics-core-",
    "commons-lang3-",
    "commons-io-",
    "commons-crypto-",
    "tink-",
    "RoaringBitmap-",
    "shims-",
    "scala-library-",
    "slf4j-",
    "log4j-",
];

/// Returns the directory with the jars that the transport of `release` needs.
///
/// Downloads the release if the directory is not in the cache.
pub(crate) fn jars(cache: &Cache, release: Release) -> Result<PathBuf> {
    let selection = cache::fingerprint(WANTED.map(str::as_bytes));
    fill(cache, release, &format!("spark-{release}-jars-{selection}"), wanted)
}

/// Returns the directory with all jars of `release`, which Spark's RpcEnv needs.
pub(crate) fn every_jar(cache: &Cache, release: Release) -> Result<PathBuf> {
    fill(cache, release, &format!("spark-{release}-every-jar"), is_jar)
}

fn fill(cache: &Cache, release: Release, name: &str, wanted: fn(&Path) -> bool) -> Result<PathBuf> {
    cache.directory(name, |jars| {
        let download = cache.scratch()?;
        fetch(release, download.path())?;
        let sdists = cache::files(download.path(), "gz")?;
        let [sdist] = &sdists[..] else {
            bail!("pip downloaded {} archives of pyspark {release} instead of one", sdists.len());
        };
        unpack(sdist, jars, wanted)?;
        ensure!(has_transport(jars)?, "pyspark {release} has no {TRANSPORT}*.jar");
        Ok(())
    })
}

fn fetch(release: Release, directory: &Path) -> Result<()> {
    let mut pip = pip()?;
    eprintln!("downloading Spark {release} (pyspark from PyPI, 200 to 450 MB)");
    pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--no-binary", "pyspark", "--dest"])
        .arg(directory)
        .arg(format!("pyspark=={release}"));
    if !release.is_at_least(3, 1) {
        // The setup.py of old releases needs pypandoc and fails with its later versions.
        let constraint = directory.join("constraint.txt");
        fs::write(&constraint, "pypandoc==1.5\n")?;
        pip.env("PIP_CONSTRAINT", constraint);
    }
    process::output("pip", &mut pip, DOWNLOAD_TIMEOUT)?;
    Ok(())
}

/// Returns the command `pip`, or `python3 -m pip` if `pip` does not run.
fn pip() -> Result<Command> {
    for words in [&["pip"][..], &["python3", "-m", "pip"]] {
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        if process::output("pip", command().arg("--version"), VERSION_TIMEOUT).is_ok() {
            return Ok(command());
        }
    }
    bail!(
        "neither `pip` nor `python3 -m pip` runs, which download Spark's jars: install pip \
         (Debian: apt install python3-pip)"
    );
}

fn has_transport(jars: &Path) -> Result<bool> {
    let is_transport = |jar: &PathBuf| {
        jar.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(TRANSPORT.as_bytes()))
    };
    Ok(cache::files(jars, "jar")?.iter().any(is_transport))
}

/// Unpacks the files of `sdist` that `wanted` selects into `jars`.
///
/// Uses the system's tar, because a decompressor in a debug build of xtask takes minutes.
fn unpack(sdist: &Path, jars: &Path, wanted: fn(&Path) -> bool) -> Result<()> {
    let listed =
        process::output("tar", Command::new("tar").arg("-tzf").arg(sdist), UNPACK_TIMEOUT)?;
    let wanted: Vec<&Path> = listed.iter().map(Path::new).filter(|path| wanted(path)).collect();
    let unpacked = sdist.with_extension("unpacked");
    fs::create_dir(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(sdist).arg("-C").arg(&unpacked).args(&wanted);
    process::output("tar", &mut tar, UNPACK_TIMEOUT)?;
    for path in wanted {
        fs::rename(unpacked.join(path), jars.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Returns whether an entry of the sdist is a jar that the transport needs.
fn wanted(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    is_jar(path) && WANTED.iter().any(|prefix| name.starts_with(prefix))
}

fn is_jar(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("deps/jars"))
        && path.extension() == Some("jar".as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_jars_that_the_transport_needs_are_unpacked() {
        let wanted = |path: &str| super::wanted(Path::new(path));
        assert!(wanted("pyspark-3.5.7/deps/jars/spark-network-common_2.12-3.5.7.jar"));
        assert!(wanted("pyspark-3.5.7/deps/jars/netty-transport-4.1.96.Final.jar"));
        assert!(!wanted("pyspark-3.5.7/deps/jars/spark-core_2.12-3.5.7.jar"));
        assert!(!wanted("pyspark-3.5.7/deps/licenses/LICENSE-netty-all.txt"));
        assert!(!wanted("pyspark-3.5.7/deps/examples/jars/scala-library-2.12.jar"));
    }
}

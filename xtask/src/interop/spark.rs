//! The jars of a Spark release, out of the `pyspark` package, which carries them all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::cache::{self, Cache};
use super::release::Release;
use crate::process;

/// 450 MB over a slow line.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(30 * 60);
const UNPACK_LIMIT: Duration = Duration::from_secs(10 * 60);
const VERSION_LIMIT: Duration = Duration::from_secs(60);

/// The transport itself, without which the rest is of no use.
const TRANSPORT: &str = "spark-network-common_";

/// What the transport needs at run time, over all releases, as the beginnings of file names.
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

/// The directory with the jars of `release`, downloaded if it is not in the cache.
pub(crate) fn jars(cache: &Cache, release: Release) -> Result<PathBuf> {
    let selection = cache::fingerprint(WANTED.map(str::as_bytes));
    fill(cache, release, &format!("spark-{release}-jars-{selection}"), wanted)
}

/// The directory with every jar of `release`, which RpcEnv needs: it loads most of Spark's core.
pub(crate) fn every_jar(cache: &Cache, release: Release) -> Result<PathBuf> {
    fill(cache, release, &format!("spark-{release}-every-jar"), is_jar)
}

fn fill(cache: &Cache, release: Release, name: &str, wanted: fn(&Path) -> bool) -> Result<PathBuf> {
    cache.directory(name, |jars| {
        let download = cache.scratch()?;
        fetch(release, download.path())?;
        let sdists = cache::files(download.path(), "gz")?;
        let [sdist] = &sdists[..] else {
            bail!("pip brought {} archives of pyspark {release}, not one", sdists.len());
        };
        unpack(sdist, jars, wanted)?;
        ensure!(has_transport(jars)?, "pyspark {release} has no {TRANSPORT}*.jar");
        Ok(())
    })
}

fn fetch(release: Release, directory: &Path) -> Result<()> {
    let mut pip = pip()?;
    eprintln!("fetching Spark {release}: pyspark of PyPI, 200 to 450 MB");
    pip.args(["download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--no-binary", "pyspark", "--dest"])
        .arg(directory)
        .arg(format!("pyspark=={release}"));
    if !release.since(3, 1) {
        // Their setup.py asks for pypandoc, of which later versions no longer build this way.
        let constraint = directory.join("constraint.txt");
        fs::write(&constraint, "pypandoc==1.5\n")?;
        pip.env("PIP_CONSTRAINT", constraint);
    }
    process::output("pip", &mut pip, DOWNLOAD_LIMIT)?;
    Ok(())
}

/// `pip`, or the pip module of Python where there is no such command.
fn pip() -> Result<Command> {
    for words in [&["pip"][..], &["python3", "-m", "pip"]] {
        let command = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            command
        };
        if process::output("pip", command().arg("--version"), VERSION_LIMIT).is_ok() {
            return Ok(command());
        }
    }
    bail!(
        "neither `pip` nor `python3 -m pip` runs, and Spark's jars come by pip: install it (Debian: apt install python3-pip)"
    );
}

fn has_transport(jars: &Path) -> Result<bool> {
    let is_it = |jar: &PathBuf| {
        jar.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(TRANSPORT.as_bytes()))
    };
    Ok(cache::files(jars, "jar")?.iter().any(is_it))
}

/// By the system's tar: in a debug build of this task, a decompressor of our own takes minutes.
fn unpack(sdist: &Path, jars: &Path, wanted: fn(&Path) -> bool) -> Result<()> {
    let listed = process::output("tar", Command::new("tar").arg("-tzf").arg(sdist), UNPACK_LIMIT)?;
    let wanted: Vec<&Path> = listed.iter().map(Path::new).filter(|path| wanted(path)).collect();
    let unpacked = sdist.with_extension("unpacked");
    fs::create_dir(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(sdist).arg("-C").arg(&unpacked).args(&wanted);
    process::output("tar", &mut tar, UNPACK_LIMIT)?;
    for path in wanted {
        fs::rename(unpacked.join(path), jars.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Whether an entry of the sdist is a jar that the transport needs.
fn wanted(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return false };
    is_jar(path) && WANTED.iter().any(|beginning| name.starts_with(beginning))
}

fn is_jar(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.ends_with("deps/jars"))
        && path.extension() == Some("jar".as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_jars_of_the_transport() {
        let wanted = |path: &str| super::wanted(Path::new(path));
        assert!(wanted("pyspark-3.5.7/deps/jars/spark-network-common_2.12-3.5.7.jar"));
        assert!(wanted("pyspark-3.5.7/deps/jars/netty-transport-4.1.96.Final.jar"));
        assert!(!wanted("pyspark-3.5.7/deps/jars/spark-core_2.12-3.5.7.jar"));
        assert!(!wanted("pyspark-3.5.7/deps/licenses/LICENSE-netty-all.txt"));
        assert!(!wanted("pyspark-3.5.7/deps/examples/jars/scala-library-2.12.jar"));
    }
}

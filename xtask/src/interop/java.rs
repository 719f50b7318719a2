//! Compiles and starts the Java programs that use Spark's own transport.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::cache::{self, Cache};
use super::release::Release;
use crate::process;

/// The Java version that Spark 4 requires.
const OLDEST_JAVA: u32 = 17;
const INSTALL: &str =
    "install a JDK of version 17 or later (Debian: apt install openjdk-17-jdk-headless)";

const VERSION_TIMEOUT: Duration = Duration::from_secs(60);
const COMPILE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../interop/java");

/// Netty in old Spark releases accesses internals of the JDK.
const JVM_OPTIONS: [&str; 4] = [
    "--add-opens",
    "java.base/java.nio=ALL-UNNAMED",
    "--add-opens",
    "java.base/sun.nio.ch=ALL-UNNAMED",
];

/// JVM options of the interop harness, which runs briefly and has to start fast.
const SHORT_RUN: &[&str] = &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g"];

/// JVM options of the bench: the JVM's defaults, with enough memory.
const LONG_RUN: &[&str] = &["-Xms1g", "-Xmx2g"];

/// JVM options of Spark's own transport benchmark.
const SUITES: &[&str] = &[
    "-Xms1g",
    // A burst queues 5000 bodies of 1 MiB.
    "-Xmx4g",
    // Spark sets these for all its JVMs.
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dio.netty.noUnsafe=false",
];

/// JVM options of Spark's driver and daemons (`JavaModuleOptions`, `SPARK_DAEMON_MEMORY`).
///
/// Executors get theirs from Spark.
const DRIVER: &[&str] = &[
    "-Xmx1g",
    "-XX:+IgnoreUnrecognizedVMOptions",
    "--add-opens=java.base/java.lang=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.invoke=ALL-UNNAMED",
    "--add-opens=java.base/java.lang.reflect=ALL-UNNAMED",
    "--add-opens=java.base/java.io=ALL-UNNAMED",
    "--add-opens=java.base/java.net=ALL-UNNAMED",
    "--add-opens=java.base/java.util=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent=ALL-UNNAMED",
    "--add-opens=java.base/java.util.concurrent.atomic=ALL-UNNAMED",
    "--add-opens=java.base/jdk.internal.ref=ALL-UNNAMED",
    "--add-opens=java.base/sun.nio.cs=ALL-UNNAMED",
    "--add-opens=java.base/sun.security.action=ALL-UNNAMED",
    "--add-opens=java.base/sun.util.calendar=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
];

/// The installed `java` and `javac`.
pub(crate) struct Jdk {
    /// The output of `javac -version`.
    version: String,
}

/// A Java program of this repository, compiled against one Spark release.
pub(crate) struct JavaPeer {
    class_path: OsString,
    main: &'static str,
    options: &'static [&'static str],
}

impl Jdk {
    /// Finds `java` and `javac` on the PATH and checks their version.
    pub(crate) fn find() -> Result<Self> {
        let version = |tool: &str, option: &str| {
            process::output(tool, Command::new(tool).arg(option), VERSION_TIMEOUT)
                .with_context(|| format!("`{tool}` does not run: {INSTALL}"))
        };
        version("java", "-version")?;
        let version = version("javac", "-version")?.join(" ");
        let major = version
            .trim_start_matches("javac ")
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        ensure!(
            major.is_some_and(|major: u32| major >= OLDEST_JAVA),
            "`javac` is too old ({version}): {INSTALL}"
        );
        Ok(Self { version })
    }

    /// Returns the interop harness for `release`, and compiles it if necessary.
    pub(crate) fn harness(&self, cache: &Cache, release: Release, jars: &Path) -> Result<JavaPeer> {
        let sources_root = Path::new(SOURCES);
        let generation = if release.is_at_least(3, 2) { "since-3.2" } else { "before-3.2" };
        let mut sources = cache::files(&sources_root.join("common"), "java")?;
        sources.extend(cache::files(&sources_root.join(generation), "java")?);
        let class_path =
            self.compile(cache, &format!("spark-{release}-harness"), jars, &sources)?;
        Ok(JavaPeer { class_path, main: "SparkPeer", options: SHORT_RUN })
    }

    /// Returns the bench for `release`. `jars` has all jars of the release.
    pub(crate) fn bench(&self, cache: &Cache, release: Release, jars: &Path) -> Result<JavaPeer> {
        let sources = cache::files(&Path::new(SOURCES).join("bench"), "java")?;
        let class_path = self.compile(cache, &format!("spark-{release}-bench"), jars, &sources)?;
        Ok(JavaPeer { class_path, main: "SparkBench", options: LONG_RUN })
    }

    /// Returns the job that reads a shuffle. `jars` has all jars of the release.
    pub(crate) fn job(&self, cache: &Cache, release: Release, jars: &Path) -> Result<JavaPeer> {
        let sources = cache::files(&Path::new(SOURCES).join("shuffle-job"), "java")?;
        let class_path = self.compile(cache, &format!("spark-{release}-job"), jars, &sources)?;
        Ok(JavaPeer { class_path, main: "ShuffleJob", options: DRIVER })
    }

    /// Returns Spark's own transport benchmark, which is a part of the bench.
    pub(crate) fn suites(&self, cache: &Cache, release: Release, jars: &Path) -> Result<JavaPeer> {
        let bench = self.bench(cache, release, jars)?;
        Ok(JavaPeer { main: "TransportSuites", options: SUITES, ..bench })
    }

    /// Returns Spark's external shuffle service, with the logging of the bench.
    pub(crate) fn shuffle_service(
        &self,
        cache: &Cache,
        release: Release,
        jars: &Path,
    ) -> Result<JavaPeer> {
        let bench = self.bench(cache, release, jars)?;
        let main = "org.apache.spark.deploy.ExternalShuffleService";
        Ok(JavaPeer { main, options: DRIVER, ..bench })
    }

    /// Returns Spark's block client, which is a part of the bench.
    pub(crate) fn shuffle_client(
        &self,
        cache: &Cache,
        release: Release,
        jars: &Path,
    ) -> Result<JavaPeer> {
        Ok(JavaPeer { main: "ShuffleBench", ..self.bench(cache, release, jars)? })
    }

    /// Returns the class path of `sources`, compiled into the cache directory `name`-`hash`.
    ///
    /// The hash covers the sources, the jars and the version of javac.
    fn compile(
        &self,
        cache: &Cache,
        name: &str,
        jars: &Path,
        sources: &[PathBuf],
    ) -> Result<OsString> {
        let sources_root = Path::new(SOURCES);
        let resources = cache::files(&sources_root.join("resources"), "properties")?;

        let contents = sources
            .iter()
            .chain(&resources)
            .map(|file| fs::read(file).with_context(|| format!("cannot read {}", file.display())));
        let contents = contents.collect::<Result<Vec<_>>>()?;
        let parts = [self.version.as_bytes(), jars.as_os_str().as_encoded_bytes()];
        let key = cache::fingerprint(parts.into_iter().chain(contents.iter().map(Vec::as_slice)));

        let every_jar = jars.join("*");
        let classes = cache.directory(&format!("{name}-{key}"), |classes| {
            eprintln!("compiling {name}");
            let mut javac = Command::new("javac");
            // Spark's classes use annotations whose jars are not on the class path.
            javac.args([
                "-Xlint:all,-classfile,-path,-processing",
                "-encoding",
                "UTF-8",
                "-classpath",
            ]);
            javac.arg(&every_jar).arg("-d").arg(classes).args(sources);
            process::output("javac", &mut javac, COMPILE_TIMEOUT)?;
            for resource in &resources {
                fs::copy(resource, classes.join(resource.file_name().unwrap_or_default()))?;
            }
            Ok(())
        })?;
        let class_path: [PathBuf; 2] = [classes, every_jar];
        env::join_paths(class_path).context("the cache directory has a path separator in its name")
    }
}

impl JavaPeer {
    /// Returns the directory of the compiled classes.
    pub(crate) fn classes(&self) -> Result<PathBuf> {
        env::split_paths(&self.class_path).next().context("the class path is empty")
    }

    /// Returns the command without the role and its options, which the caller appends.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("java");
        command
            .args(JVM_OPTIONS)
            .args(self.options)
            .arg("-classpath")
            .arg(&self.class_path)
            .arg(self.main);
        command
    }
}

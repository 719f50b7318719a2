//! Builds and starts shuffle services, their load, and Spark's block client.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::super::pair;
use super::super::place::{Place, Places};
use super::{OURS, SPARK};
use crate::build;
use crate::interop::cache::Cache;
use crate::interop::java::{JavaPeer, Jdk};
use crate::interop::release::Release;
use crate::interop::spark;
use crate::process::Process;

const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// The script that raises the limit of open files for a program, whose process it becomes.
const RAISE_LIMIT: &str = "ulimit -n \"$(ulimit -H -n)\" && exec \"$0\" \"$@\"";

/// The built programs.
pub(super) struct ShufflePrograms {
    service: PathBuf,
    load: PathBuf,
    spark: Option<SparkPrograms>,
}

struct SparkPrograms {
    service: JavaPeer,
    client: JavaPeer,
}

/// The port and the directory of one run of a service.
pub(super) struct ServiceSetup {
    address: String,
    /// The settings, and the stored registrations.
    directory: TempDir,
    /// The directory below which executors have theirs.
    executors: PathBuf,
}

impl ServiceSetup {
    /// Chooses a port, and writes the settings of a service with an empty store.
    ///
    /// Both services read Spark's `spark-defaults.conf`.
    pub(super) fn new(executors: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let store = directory.path().join("store");
        fs::create_dir(&store)?;
        let settings = format!(
            "spark.shuffle.service.host 127.0.0.1\n\
             spark.shuffle.service.port {port}\n\
             spark.local.dir {},{}\n",
            store.display(),
            executors.display(),
        );
        fs::write(directory.path().join("spark-defaults.conf"), settings)?;
        let address = format!("127.0.0.1:{port}");
        Ok(Self { address, directory, executors: executors.to_owned() })
    }
}

impl ShufflePrograms {
    /// Builds our service and its load in release mode, and compiles the programs for Spark.
    pub(super) fn build(release: Option<Release>) -> Result<Self> {
        // Both packages in each build, so that their dependencies are built once.
        let packages = ["--package", "network-shuffle", "--package", "shuffle-load"];
        let program = |name| build::program(".", name, &[&packages[..], &["--bin", name]].concat());
        Ok(Self {
            service: program("shuffle-service")?,
            load: program("shuffle-load")?,
            spark: release.map(SparkPrograms::build).transpose()?,
        })
    }

    /// Returns the names of the services, or of the block clients, that can be measured.
    pub(super) fn names(&self) -> Vec<&'static str> {
        if self.spark.is_some() { vec![OURS, SPARK] } else { vec![OURS] }
    }

    /// Starts a service, which may not be ready yet.
    pub(super) fn start_service(
        &self,
        name: &str,
        places: &Places,
        setup: &ServiceSetup,
    ) -> Result<Process> {
        let mut command = match (&self.spark, name) {
            (Some(spark), SPARK) => spark.service.command(),
            _ => Command::new(&self.service),
        };
        command
            .env_remove("SPARK_HOME")
            .env("SPARK_CONF_DIR", setup.directory.path())
            .env("SPARK_LOCAL_IP", "127.0.0.1");
        start(&format!("the service {name}"), places, command)
    }

    /// Starts a load for a service.
    pub(super) fn start_load(&self, places: &Places, setup: &ServiceSetup) -> Result<Process> {
        let mut command = Command::new(&self.load);
        command.arg(&setup.executors).arg(&setup.address);
        started(start("shuffle-load", places, command)?)
    }

    /// Starts Spark's block client for a service, if Spark is measured.
    pub(super) fn start_spark_client(
        &self,
        places: &Places,
        setup: &ServiceSetup,
    ) -> Result<Option<Process>> {
        let Some(spark) = &self.spark else { return Ok(None) };
        let mut command = spark.client.command();
        command.arg(&setup.address);
        started(start("Spark's block client", places, command)?).map(Some)
    }
}

impl SparkPrograms {
    fn build(release: Release) -> Result<Self> {
        let (jdk, cache) = (Jdk::find()?, Cache::open()?);
        let jars = spark::every_jar(&cache, release)?;
        Ok(Self {
            service: jdk.shuffle_service(&cache, release, &jars)?,
            client: jdk.shuffle_client(&cache, release, &jars)?,
        })
    }
}

fn started(process: Process) -> Result<Process> {
    pair::ready(&process, Instant::now() + READY_TIMEOUT)?;
    Ok(process)
}

fn start(name: &str, places: &Places, command: Command) -> Result<Process> {
    let mut raised = Command::new("sh");
    raised.args(["-c", RAISE_LIMIT]).arg(command.get_program()).args(command.get_args());
    let mut placed = places.command_in(Place::Cubic, raised);
    for (variable, value) in command.get_envs() {
        match value {
            Some(value) => placed.env(variable, value),
            None => placed.env_remove(variable),
        };
    }
    Process::start(name, &mut placed).with_context(|| name.to_owned())
}

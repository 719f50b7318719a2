//! [`Program`], a running `shuffle-service`.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use network_common::{NoOpRpcHandler, TransportClient, TransportConf, TransportContext};

use crate::support::path_text;

/// A running program, which is killed when it is dropped.
pub(crate) struct Program {
    pub(crate) child: Child,
    output: BufReader<std::process::ChildStdout>,
    address: SocketAddr,
}

pub(crate) fn command(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shuffle-service"));
    command.env_remove("SPARK_HOME").env_remove("SPARK_CONF_DIR");
    for (key, value) in settings {
        command.args(["--conf", &format!("{key}={value}")]);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Settings of a service on a free port with a store in `dir`.
pub(crate) fn settings<'a>(dir: &'a Path, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut settings = vec![
        ("spark.shuffle.service.host", "127.0.0.1"),
        ("spark.shuffle.service.port", "0"),
        ("spark.shuffle.service.db.dir", path_text(dir)),
    ];
    settings.extend_from_slice(more);
    settings
}

impl Program {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("shuffle-service is listening on ");
        let address = address.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
        Self { child, output, address }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }

    /// Returns the next lines up to and including the first one that begins with `last`.
    pub(crate) fn read_until(&mut self, last: &str) -> String {
        let mut text = String::new();
        while !text.lines().last().is_some_and(|line| line.starts_with(last)) {
            assert_ne!(self.output.read_line(&mut text).unwrap(), 0, "{text}");
        }
        text
    }

    /// Waits for the end of the program; returns the rest of its output.
    pub(crate) fn wait(mut self) -> String {
        let mut text = String::new();
        self.output.read_to_string(&mut text).unwrap();
        assert!(self.child.wait().unwrap().success(), "{text}");
        text
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn connect(&self) -> TransportClient {
        let context = TransportContext::new(TransportConf::new("shuffle"), NoOpRpcHandler::new());
        context.create_client_factory().create_client(self.address).await.unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn value(report: &str, name: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {report}")).parse().unwrap()
}

pub(crate) fn error_of(command: &mut Command) -> String {
    let Output { status, stderr, .. } = command.output().unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

//! Tests the output and the errors of the program at its start.

use std::fs;
use std::io::Read;

use crate::running_program::{Program, command, error_of, settings};
use crate::support::*;

#[tokio::test]
async fn ess_17_program_prints_its_address_its_store_and_its_modes() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("spark-defaults.conf");
    fs::write(&file, "spark.shuffle.service.index.cache.size 10m\nspark.ui.port 4040\n").unwrap();
    let mut command = command(&settings(dir.path(), &[]));
    let mut program = Program::start(command.arg("--properties-file").arg(&file));
    let modes = program.read_until("TLS");
    assert!(modes.contains("registeredExecutors.redb, with 0 executors"), "{modes}");
    assert!(modes.contains("local directories of executors: any"), "{modes}");
    assert!(modes.contains("authentication: off"), "{modes}");
    assert!(modes.contains("TLS: off"), "{modes}");
}

#[test]
fn ess_17_errors_at_start_name_setting_and_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let used = port.local_addr().unwrap().port().to_string();
    let blocked = dir.path().join("file");
    fs::write(&blocked, "").unwrap();
    let missing = dir.path().join("missing");
    for (key, value, more, expected) in [
        ("spark.shuffle.service.port", used.as_str(), None, "spark.shuffle.service.port"),
        ("spark.shuffle.service.port", "x", None, "expected a number up to 65535"),
        (
            "spark.shuffle.service.index.cache.size",
            "-1",
            None,
            "expected a size of 0 bytes or more",
        ),
        ("spark.local.dir", "relative", None, "expected absolute paths, separated by commas"),
        ("spark.shuffle.io.backLog", "x", None, "spark.shuffle.io.backLog"),
        ("spark.authenticate", "true", None, "spark.shuffle.service.secrets.dir"),
        (
            "spark.authenticate",
            "true",
            Some(("spark.shuffle.service.secrets.dir", path_text(&missing))),
            path_text(&missing),
        ),
        (
            "spark.shuffle.service.db.required",
            "true",
            Some(("spark.shuffle.service.db.dir", path_text(&blocked))),
            "spark.shuffle.service.db.dir",
        ),
        ("spark.ssl.rpc.enabled", "true", None, "spark.ssl.rpc"),
    ] {
        let more: Vec<_> = [(key, value)].into_iter().chain(more).collect();
        let error = error_of(&mut command(&settings(dir.path(), &more)));
        assert!(error.contains(expected), "{key}={value}: {error}");
        assert!(error.contains("error: "), "{error}");
    }
    let mut command = command(&settings(dir.path(), &[]));
    let error = error_of(command.arg("--properties-file").arg(&missing));
    assert!(error.contains(path_text(&missing)) && error.contains("--properties-file"), "{error}");
}

#[test]
fn ess_17_unknown_keys_are_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let typing_error = [("spark.shuffle.service.indexCacheSize", "1m")];
    let program = Program::start(&mut command(&settings(dir.path(), &typing_error)));
    program.signal("TERM");
    let output = {
        let mut program = program;
        let mut error = String::new();
        program.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
        error
    };
    let expected = "there is no setting spark.shuffle.service.indexCacheSize; did you mean \
                    spark.shuffle.service.index.cache.size?";
    assert!(output.contains(expected), "{output}");
}

#[test]
fn ess_17_help_lists_all_settings() {
    let help = command(&[]).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "--properties-file",
        "--drain-timeout",
        "spark.shuffle.service.port\n      number, default 7337: port",
        "spark.shuffle.io.backLog",
        "spark.ssl.rpc.keyStore",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    let short = command(&[]).arg("-h").output().unwrap();
    assert!(short.stdout.len() < 2000);
}

//! Any file as a trust store and as a key store: an error or not, but no panic.

#![no_main]

use std::cell::OnceCell;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use network_common::{ErrorKind, NoOpRpcHandler, TransportConf, TransportContext};

thread_local! {
    /// In memory where there is such a place: files are read by their paths.
    static FILE: OnceCell<PathBuf> = const { OnceCell::new() };
}

fn file() -> PathBuf {
    FILE.with(|file| {
        file.get_or_init(|| {
            let memory = PathBuf::from("/dev/shm");
            let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
            directory.join(format!("fuzz-key-store-{}", std::process::id()))
        })
        .clone()
    })
}

fuzz_target!(|content: &[u8]| {
    let path = file();
    std::fs::write(&path, content).expect("there is room");
    let path = path.to_str().expect("an ASCII path");
    // Without a password, nothing is held back by a digest.
    for (setting, password) in
        [("trustStore", None), ("keyStore", None), ("trustStore", Some("changeit"))]
    {
        let mut settings = vec![
            ("spark.ssl.rpc.enabled".to_owned(), "true".to_owned()),
            (format!("spark.ssl.rpc.{setting}"), path.to_owned()),
            ("spark.ssl.rpc.keyPassword".to_owned(), "changeit".to_owned()),
        ];
        if let Some(password) = password {
            settings.push((format!("spark.ssl.rpc.{setting}Password"), password.to_owned()));
        }
        let conf = TransportConf::from_settings("fuzz", settings).expect("these are valid");
        if let Err(error) = TransportContext::new(conf, NoOpRpcHandler::new()).check_security() {
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }
});

//! Loads an arbitrary file as a TLS trust store and as a key store, with and without a password.
//!
//! Properties: it does not panic, and the error for an unusable file has the kind `Config`.
//!
//! Input: the content of the file.

#![no_main]

use std::cell::OnceCell;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use network_common::{ErrorKind, NoOpRpcHandler, TransportConf, TransportContext};

thread_local! {
    /// The path of the file. It is in `/dev/shm` if that exists, to avoid writes to the disk.
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
    std::fs::write(&path, content).expect("the file cannot be written");
    let path = path.to_str().expect("the path is ASCII");
    // Without a password, the digest is not checked, so that the parser sees arbitrary bytes.
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
        let conf = TransportConf::from_settings("fuzz", settings).expect("the settings are valid");
        if let Err(error) = TransportContext::new(conf, NoOpRpcHandler::new()).check_security() {
            assert_eq!(error.kind(), ErrorKind::Config);
        }
    }
});

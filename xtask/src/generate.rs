//! `cargo xtask generate`: the committed code of `.proto` files.
//!
//! Users of rpc-core compile no schema of ours, so the code of the envelope, of rpc-core's tests
//! and of the examples is committed. `cargo run --example quickstart` then needs no code generator.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;

use crate::build::ROOT;

/// The committed files: schema, package, and folder of the generated code.
const SCHEMAS: [(&str, &str, &str); 8] = [
    ("rpc_envelope.proto", "rpc_core.envelope", "crates/rpc-core/src/wire/generated"),
    ("hello.proto", "hello", TESTS),
    ("coverage.proto", "coverage", TESTS),
    ("random.proto", "random", TESTS),
    ("refs.proto", "refs", TESTS),
    ("hello.proto", "hello", EXAMPLES),
    ("heartbeat.proto", "heartbeat", EXAMPLES),
    ("standalone.proto", "standalone", EXAMPLES),
];
const EXAMPLES: &str = "crates/examples/src/generated";
const TESTS: &str = "crates/rpc-core/tests/generated";
const INCLUDES: [&str; 2] = ["proto", "crates/rpc-core/tests/protos"];

#[derive(Args)]
pub(crate) struct GenerateOptions {
    /// Change nothing, and fail if a committed file is not current
    #[arg(long)]
    check: bool,
}

/// Writes or checks the files. Returns whether all are current.
pub(crate) fn run(options: &GenerateOptions) -> Result<bool> {
    let root = Path::new(ROOT);
    let includes = INCLUDES.map(|folder| root.join(folder));
    let mut current = true;
    for (schema, package, folder) in SCHEMAS {
        let out = tempfile::tempdir()?;
        rpc_build::compile_protos_into(out.path(), &[schema], &includes)?;
        let name = format!("{package}.rs");
        let code = fs::read_to_string(out.path().join(&name))?;
        let text = format!("// Generated from {schema} by `cargo xtask generate`.\n{code}");
        let file = root.join(folder).join(&name);
        if fs::read_to_string(&file).is_ok_and(|committed| committed == text) {
            continue;
        }
        if options.check {
            println!("{folder}/{name} is not current: run `cargo xtask generate`");
            current = false;
        } else {
            fs::create_dir_all(root.join(folder))?;
            fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
            println!("wrote {folder}/{name}");
        }
    }
    Ok(current)
}

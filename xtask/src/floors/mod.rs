//! `cargo xtask floors`: checks the imports of crates against the floors in ARCHITECTURE.md.
//!
//! ARCHITECTURE.md lists the floors of a crate in the first table under `## <crate>: floors`. The
//! first column is the floor. Each name in backticks in the second column is a top-level module;
//! the slash after the name of a folder is optional, and text in parentheses is ignored. Below the
//! table, a line "Exceptions: `a` -> `b` because ..." allows one import between two folders on the
//! same floor.
//!
//! Rows with the floor `-`, test-only modules and `models/` are not checked. Imports, paths in code
//! and paths in macros count; docs and visibilities do not. In the search for circles, a re-export
//! counts only if its file also uses the name, and `lib.rs` is left out.

mod check;
mod circles;
mod collect;
mod table;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::build::ROOT;

/// The source files of one crate: path below `src/` to text.
type Sources = BTreeMap<String, String>;

const CRATES: [&str; 3] = ["network-common", "network-shuffle", "rpc-core"];
const PAGE: &str = "ARCHITECTURE.md";

/// The text of `cargo xtask floors --help` below the options.
pub(crate) const HELP: &str = "\
ARCHITECTURE.md assigns each top-level module of network-common, network-shuffle and rpc-core to a
floor.
The command reports:
  - a module without a floor, and a floor entry without a module
  - an import of a module on a higher floor
  - an import between two folders on the same floor
  - a circle of imports among the files of one folder
The exit status is 1 if it reports anything.";

/// Checks the crates and prints one line per finding. Returns whether there is none.
pub(crate) fn run() -> Result<bool> {
    let root = Path::new(ROOT);
    let page =
        fs::read_to_string(root.join(PAGE)).with_context(|| format!("cannot read {PAGE}"))?;
    let mut count = 0;
    for name in CRATES {
        let folder = root.join("crates").join(name).join("src");
        let mut sources = Sources::new();
        read_sources(&folder, "", &mut sources)?;
        for finding in check::check(name, &page, &sources)? {
            println!("{finding}");
            count += 1;
        }
    }
    println!("{count} findings");
    Ok(count == 0)
}

/// Adds all `.rs` files of `folder` to `sources`, with `prefix` in front of their names.
fn read_sources(folder: &Path, prefix: &str, sources: &mut Sources) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() {
            read_sources(&path, &format!("{prefix}{name}/"), sources)?;
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            sources.insert(format!("{prefix}{name}"), text);
        }
    }
    Ok(())
}

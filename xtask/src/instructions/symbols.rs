//! Finds the functions that are inlined at an address, with `addr2line`.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::Process;

/// `addr2line` is slow: it searches large debug information for each address.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The functions of each address: the innermost inlined one first, the compiled one last.
pub(super) type Frames = HashMap<u64, Vec<String>>;

/// Looks up `addresses` in the debug information of `program`.
pub(super) fn frames(program: &Path, addresses: impl Iterator<Item = u64>) -> Result<Frames> {
    let deadline = Instant::now() + TIMEOUT;
    let mut command = Command::new("addr2line");
    command.args(["--addresses", "--inlines", "--functions", "--demangle", "--exe"]).arg(program);
    let mut process = Process::start("addr2line", &mut command)
        .context("is addr2line installed? `apt-get install binutils`")?;
    for address in addresses {
        process.write_line(&format!("{address:#x}"))?;
    }
    let status = process.exit(deadline)?;
    ensure!(status.success(), "addr2line failed: {}", process.stderr().join("\n"));
    let mut frames = Frames::new();
    let mut address = 0;
    while let Some(line) = process.read_line(deadline)? {
        if let Some(digits) = line.strip_prefix("0x") {
            address = u64::from_str_radix(digits, 16)?;
        } else {
            // The next line is the source file of the function.
            process.read_line(deadline)?;
            frames.entry(address).or_default().push(line);
        }
    }
    Ok(frames)
}

/// Removes the generic arguments of a demangled name, but not the type of a method.
pub(super) fn without_generics(name: &str) -> String {
    let mut short = String::new();
    let mut depth = 0;
    let mut before = ' ';
    for (index, character) in name.char_indices() {
        // In `<T as Trait>::f` the bracket is at the start of a path; in `T<A>` it follows a name.
        let is_after_name = before.is_alphanumeric() || before == '_';
        let opens_arguments = character == '<' && (is_after_name || name[..index].ends_with("::"));
        let is_arrow = character == '>' && before == '-';
        if opens_arguments || (depth > 0 && character == '<') {
            depth += 1;
        } else if depth > 0 && character == '>' && !is_arrow {
            depth -= 1;
        } else if depth == 0 {
            short.push(character);
        }
        before = character;
    }
    // `T::<A>` leaves two colons behind.
    short.replace("::::", "::").trim_end_matches("::").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_the_type_of_a_method_and_lose_generic_arguments() {
        for (name, short) in [
            ("<a::T<b::U<u8>>>::f::<fn() -> u8>", "<a::T>::f"),
            ("<a::T<u8> as a::Trait<b::U>>::f::{closure#0}", "<a::T as a::Trait>::f::{closure#0}"),
            ("a::f::<u8>", "a::f"),
            ("<<a::T as a::Trait>::f as b::Trait>::g", "<<a::T as a::Trait>::f as b::Trait>::g"),
        ] {
            assert_eq!(without_generics(name), short);
        }
    }
}

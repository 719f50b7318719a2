//! `cargo xtask conformance`: writes the tests of each row into docs/conformance.md, and checks
//! that every id in a test name, a comment or a document has a row.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use proc_macro2::{Ident, TokenStream, TokenTree};
use regex::Regex;
use syn::{ItemFn, Macro, visit, visit::Visit};

use crate::build::ROOT;
use crate::process;

const PAGE: &str = "docs/conformance.md";
const BEGIN: &str = "<!-- begin of rows -->";
const END: &str = "<!-- end of rows -->";
const ROW: &str = r"^\| `([a-z0-9_]+)` \|";
/// The ids in front of a name: an area, and numbers such as `07_`, `04_and_05_` or `c14_`.
const NAME: &str = r"^((?:[a-z]+_)+?)((?:(?:and_)?[a-z]?\d{1,2}_)+)";
const CITATION: &str = r"\b(?:(?:[a-z]+_)+[a-z]?\d{1,2}|[A-Z]+(?:-[A-Z]+)*-\d{2})\b";
const READ: [&str; 4] = ["crates/*.rs", "*.proto", "*.md", ":!CHANGELOG.md"];

/// The text of `cargo xtask conformance --help` below the options.
pub(crate) const HELP: &str = "\
Names of tests begin with ids of rows: `rpc_env_07_...`, `rsp_04_05_...`, `fault_c1_...`.
The command writes these names into the last column of docs/conformance.md, and reports:
  - an id in a test name, a comment or a document that has no row
  - a row without tests, and a row of \"Not covered\" with tests
The exit status is 1 if it reports anything.";

/// Options of `cargo xtask conformance`.
#[derive(Args)]
pub(crate) struct ConformanceOptions {
    /// Change nothing, and fail if the page is out of date
    #[arg(long)]
    check: bool,
}

/// The text of each file, by its path in the repository.
type Sources = BTreeMap<String, String>;

/// Updates or checks the page and prints what is wrong. Returns whether nothing is.
pub(crate) fn run(options: &ConformanceOptions) -> Result<bool> {
    let mut list = Command::new("git");
    list.current_dir(ROOT).args(["ls-files", "-co", "--exclude-standard", "--"]).args(READ);
    let mut sources = Sources::new();
    for file in process::output("git ls-files", &mut list, Duration::from_secs(60))? {
        let path = Path::new(ROOT).join(&file);
        if path.exists() {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
            sources.insert(file, text);
        }
    }
    let (page, mut findings) = update(&sources)?;
    if !options.check {
        fs::write(Path::new(ROOT).join(PAGE), page).context("cannot write the page")?;
    } else if sources.get(PAGE) != Some(&page) {
        findings.push(format!("{PAGE} is out of date: run `cargo xtask conformance`"));
    }
    findings.iter().for_each(|finding| println!("{finding}"));
    println!("{} findings in {PAGE} and the tests and texts that cite it", findings.len());
    Ok(findings.is_empty())
}

/// Returns the page with the current tests, and one line for each finding.
fn update(sources: &Sources) -> Result<(String, Vec<String>)> {
    let text = sources.get(PAGE).with_context(|| format!("there is no file {PAGE}"))?;
    let row = Regex::new(ROW)?;
    let id_of = |line| Some(row.captures(line)?[1].to_owned());
    let mut reader = Reader {
        name: Regex::new(NAME)?,
        citation: Regex::new(CITATION)?,
        rows: text.lines().filter_map(id_of).collect(),
        tests: BTreeMap::new(),
        findings: Vec::new(),
        file: String::new(),
    };
    sources.iter().try_for_each(|(file, text)| reader.read(file, text))?;
    let (mut page, mut section, mut seen) = (String::new(), "", BTreeSet::new());
    let mut findings = reader.findings;
    for (number, line) in (1..).zip(text.lines()) {
        section = if [BEGIN, END].contains(&line) { line } else { section };
        let Some(id) = id_of(line) else {
            page += &format!("{line}\n");
            continue;
        };
        let names = reader.tests.get(&id);
        let mut add = |text| findings.push(format!("{PAGE}:{number}: `{id}` {text}"));
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        match (section, names) {
            (END, Some(_)) => add("has tests, so it is not \"Not covered\""),
            (BEGIN, None) => add("has no test: write one, or move the row"),
            _ if ![3, 4].contains(&cells.len()) => add("must have 3 or 4 cells"),
            _ if !seen.insert(id.clone()) => add("has two rows"),
            _ => {}
        }
        let names: Vec<_> = names.into_iter().flatten().map(|it| format!("`{it}`")).collect();
        page += &match cells[..] {
            [id, rule, origin] | [id, rule, origin, _] if section == BEGIN => {
                format!("| {id} | {rule} | {origin} | {} |\n", names.join(", "))
            }
            _ => format!("{line}\n"),
        };
    }
    ensure!(section == END, "{PAGE} lacks {BEGIN} or {END}");
    Ok((page, findings))
}

/// Collects the tests of each id, and the ids without a row.
struct Reader {
    name: Regex,
    citation: Regex,
    rows: BTreeSet<String>,
    tests: BTreeMap<String, BTreeSet<String>>,
    findings: Vec<String>,
    file: String,
}

impl Reader {
    fn read(&mut self, file: &str, text: &str) -> Result<()> {
        file.clone_into(&mut self.file);
        if file.ends_with(".rs") {
            self.visit_file(
                &syn::parse_file(text).with_context(|| format!("cannot parse {file}"))?,
            );
        }
        for (number, line) in (1..).zip(text.lines()) {
            let start = if file.ends_with(".md") { Some(0) } else { line.find("//") };
            for found in self.citation.find_iter(start.map_or("", |start| &line[start..])) {
                let id = found.as_str().to_lowercase().replace('-', "_");
                let text = match self.rows.contains(&id) {
                    true if id == found.as_str() => continue,
                    true => format!("write `{id}` instead of {}", found.as_str()),
                    false => format!("`{id}` has no row"),
                };
                if self.is_id(&id) {
                    self.findings.push(format!("{file}:{number}: {text}"));
                }
            }
        }
        Ok(())
    }

    /// Returns whether `id` is an id, and not a name or number that looks like one.
    ///
    /// Without a row of the same area, only the numbers 00 to 09 make an id.
    fn is_id(&self, id: &str) -> bool {
        let (area, number) = id.rsplit_once('_').unwrap_or_default();
        let is_area = |row: &String| row.rsplit_once('_').is_some_and(|(other, _)| other == area);
        number.starts_with('0') && number.len() == 2 || self.rows.iter().any(is_area)
    }

    fn add_test(&mut self, ident: &Ident) {
        let (name, line) = (ident.to_string(), ident.span().start().line);
        let Some(found) = self.name.captures(&name) else { return };
        for number in found[2].split('_').filter(|part| !["and", ""].contains(part)) {
            let id = format!("{}{number}", &found[1]);
            if self.rows.contains(&id) {
                self.tests.entry(id).or_default().insert(name.clone());
            } else if self.is_id(&id) {
                self.findings.push(format!("{}:{line}: `{id}` of {name} has no row", self.file));
            }
        }
    }

    /// Adds the functions in the tokens of a macro, which syn does not parse.
    fn scan(&mut self, tokens: TokenStream) {
        let mut after_fn = false;
        for token in tokens {
            match &token {
                TokenTree::Ident(name) if after_fn => self.add_test(name),
                TokenTree::Group(group) => self.scan(group.stream()),
                _ => {}
            }
            after_fn = matches!(token, TokenTree::Ident(word) if word == "fn");
        }
    }
}

impl Visit<'_> for Reader {
    fn visit_item_fn(&mut self, item: &ItemFn) {
        let mut names = item.attrs.iter().filter_map(|it| it.path().segments.last());
        if names.any(|name| name.ident == "test") {
            self.add_test(&item.sig.ident);
        }
        visit::visit_item_fn(self, item);
    }

    fn visit_macro(&mut self, item: &Macro) {
        self.scan(item.tokens.clone());
    }
}

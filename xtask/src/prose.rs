//! `cargo xtask prose`: finds text and names that are hard to read, with mechanical checks.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use regex::Regex;

use crate::build::ROOT;
use crate::process;

#[cfg(test)]
#[path = "prose_tests.rs"]
mod tests;

const MAX_COLUMNS: usize = 100;
const MAX_FUNCTION_NAME: usize = 70;
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

const TOO_LONG: &str = "line over 100 columns";
const UNCLEAR_WORD: &str = "unclear word";
const FRAGMENT: &str = "doc summary is a fragment";
const LONG_NAME: &str = "function name over 70 characters";
const DUPLICATE_TYPE: &str = "type name is not unique in its crate";

/// Tracked files that are not read: data, recorded output and the history of releases.
const SKIPPED: &str = r"(^|/)(target|fuzz/seeds)/|(^|/)CHANGELOG\.md$|/generated/";

/// Words that hide who does what, and what to write instead. The brackets around a letter keep
/// this list from matching itself.
const UNCLEAR_WORDS: [(&str, &str); 16] = [
    (r"(?:un)?[t]old|[t]ells?|[t]elling", "notify, report, send"),
    (r"[s]trangers?|[g]uests?", "unauthenticated peer"),
    (r"[l]ast words|in so [m]any words", "pending output; the literal value"),
    (r"(?:[g]ives?|[g]iven|[g]ave|[g]iving) (?:it |them |one )?up|[f]orgo(?:ne|es)?", "cancel"),
    (r"[w]ho(?:ever)? (?:is|are|has|have|had|waits?|asks?|sends?)", "the caller, the peer"),
    (r"[w]ho(?:ever)? (?:holds?|knows?|made|comes?|listens?)", "the owner, the listener"),
    (r"[w]hat (?:wait(?:s|ed)|comes|follows|goes|was|came|has)", "the name of the thing"),
    (r"[w]hat (?:it )?is (?:left|sent)", "the rest, the message"),
    (r"[n]obody|[s]omebody", "no caller, no peer; a caller, a peer"),
    (r"[b]elieves?|[l]earns? (?:it|of|that)", "accepts, is notified of"),
    (r"for [e]ver", "without a limit"),
    (r"[s]o many", "the number and its unit"),
    (r"in [h]and", "active"),
    (r"[s]tands? (?:for a|ready)|[s]tands?\.", "is, represents"),
    (r"(?:[m]akes?|there is) [r]oom|[r]oom for", "capacity"),
    (r"is [o]ver", "has ended, has expired"),
];

/// The first words of doc summaries that are no whole sentences.
const FRAGMENTS: &str = "Until|Who|Whose|What|Whether|How|Where|Of|[S]o many|Else|As|If|For|From|\
    False|True|Not|One that|Those|That|The same|Takes no|Takes nothing|Behind|Beyond|[T]old|There|\
    Then";

/// The text of `cargo xtask prose --help` below the options.
pub(crate) const HELP: &str = "\
The command reads the tracked .rs, .md and .proto files and counts:
  - lines over 100 columns, except tables and links
  - words of a list that hide who does what, in comments, strings and Markdown
  - doc comments whose first line is no whole sentence
  - type names that occur twice in the sources of a crate, except in tests
  - function names over 70 characters
A finding is a place to look at. Text without findings can still be hard to read.
The exit status is 1 if there are more findings than --allow.";

/// Options of `cargo xtask prose`.
#[derive(Args)]
pub(crate) struct ProseOptions {
    /// Files and folders to read; the whole repository if there are none
    paths: Vec<String>,
    /// Number of places to print for each kind of finding
    #[arg(long, value_name = "N", default_value_t = 5)]
    max: usize,
    /// Number of findings above which the command fails
    #[arg(long, value_name = "N", default_value_t = 150)]
    allow: usize,
}

/// Prints the findings by kind. Returns whether their number is allowed.
pub(crate) fn run(options: &ProseOptions) -> Result<bool> {
    let mut list = Command::new("git");
    list.current_dir(ROOT).args(["ls-files", "--"]).args(&options.paths);
    let files = process::output("git ls-files", &mut list, LIST_TIMEOUT)?;
    let mut reader = Reader::new()?;
    let skipped = Regex::new(SKIPPED)?;
    let read = Regex::new(r"\.(rs|md|proto)$")?;
    let mut count = 0;
    for file in files.iter().filter(|file| read.is_match(file) && !skipped.is_match(file)) {
        let path = Path::new(ROOT).join(file);
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
        reader.read(file, &text);
        count += 1;
    }
    let findings = reader.findings();
    let mut kinds: Vec<_> = findings.iter().collect();
    kinds.sort_by_key(|(_, places)| usize::MAX - places.len());
    for (kind, places) in kinds {
        println!("{:5}  {kind}", places.len());
        for place in places.iter().take(options.max) {
            println!("         {place}");
        }
    }
    let total = findings.values().map(Vec::len).sum::<usize>();
    println!("{total} findings in {count} files, {} allowed", options.allow);
    Ok(total <= options.allow)
}

/// The places of each kind of finding.
type Findings = BTreeMap<&'static str, Vec<String>>;

/// Collects the findings of all files.
struct Reader {
    unclear_words: Vec<(Regex, &'static str)>,
    comment_or_string: Regex,
    code_in_text: Regex,
    fragment: Regex,
    type_name: Regex,
    function_name: Regex,
    findings: Findings,
    /// The places of each type, by crate and name.
    types: BTreeMap<(String, String), Vec<String>>,
}

impl Reader {
    fn new() -> Result<Self> {
        let unclear_words = UNCLEAR_WORDS.iter().map(|(words, instead)| {
            // There is no word boundary after a full stop.
            Ok((Regex::new(&format!(r"(?i)\b(?:{words})(?:\b|$|\s)"))?, *instead))
        });
        Ok(Self {
            unclear_words: unclear_words.collect::<Result<_>>()?,
            comment_or_string: Regex::new(r#"//.*|".*""#)?,
            code_in_text: Regex::new("`[^`]*`")?,
            fragment: Regex::new(&format!(r"^\s*//[/!] (?:{FRAGMENTS})\b"))?,
            type_name: Regex::new(
                r"^\s*(?:pub(?:\([a-z]+\))? )?(?:struct|enum|union|trait) (\w+)",
            )?,
            function_name: Regex::new(r"\bfn (\w+)")?,
            findings: Findings::new(),
            types: BTreeMap::new(),
        })
    }

    fn read(&mut self, file: &str, text: &str) {
        let is_rust = file.ends_with(".rs");
        let is_page = file.ends_with(".md");
        let mut in_block = false;
        let mut previous = "";
        for (number, line) in (1..).zip(text.lines()) {
            let place = format!("{file}:{number}");
            self.check_width(&place, line);
            if is_page && line.trim_start().starts_with("```") {
                in_block = !in_block;
            }
            let prose = match self.comment_or_string.find(line) {
                _ if is_page && !in_block => line,
                found => found.map_or("", |found| found.as_str()),
            };
            self.check_words(&place, prose);
            if is_rust {
                self.check_summary(&place, line, previous);
                self.check_function(&place, line);
            }
            previous = line;
        }
        if is_rust {
            self.add_types(file, text);
        }
    }

    fn add(&mut self, kind: &'static str, place: String) {
        self.findings.entry(kind).or_default().push(place);
    }

    fn check_width(&mut self, place: &str, line: &str) {
        let is_table = without_comment_marks(line).starts_with('|');
        if line.chars().count() > MAX_COLUMNS && !is_table && !line.contains("http") {
            self.add(TOO_LONG, place.to_owned());
        }
    }

    fn check_words(&mut self, place: &str, prose: &str) {
        let text = self.code_in_text.replace_all(prose, "");
        let found = self.unclear_words.iter().find_map(|(words, instead)| {
            let word = words.find(&text)?.as_str().trim();
            Some(format!("{place}: {word:?} (write: {instead}): {}", shortened(prose.trim())))
        });
        if let Some(finding) = found {
            self.add(UNCLEAR_WORD, finding);
        }
    }

    fn check_summary(&mut self, place: &str, line: &str, previous: &str) {
        if is_doc(line) && !is_doc(previous) && self.fragment.is_match(line) {
            self.add(FRAGMENT, format!("{place}: {}", shortened(without_comment_marks(line))));
        }
    }

    fn check_function(&mut self, place: &str, line: &str) {
        let name = self.function_name.captures(line).map(|found| found[1].to_owned());
        if let Some(name) = name.filter(|name| name.len() > MAX_FUNCTION_NAME) {
            self.add(LONG_NAME, format!("{place}: {name}"));
        }
    }

    /// Adds the types of a source file, up to its module of tests.
    fn add_types(&mut self, file: &str, text: &str) {
        let Some((folder, _)) = file.split_once("/src/") else { return };
        if file.contains("/tests/") || file.ends_with("tests.rs") {
            return;
        }
        let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in (1..).zip(code.lines()) {
            if let Some(found) = self.type_name.captures(line) {
                let key = (folder.to_owned(), found[1].to_owned());
                self.types.entry(key).or_default().push(format!("{file}:{number}"));
            }
        }
    }

    fn findings(mut self) -> Findings {
        for ((folder, name), places) in std::mem::take(&mut self.types) {
            if places.len() > 1 {
                self.add(DUPLICATE_TYPE, format!("{folder}: {name}: {}", places.join(", ")));
            }
        }
        self.findings
    }
}

fn is_doc(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("///") || line.starts_with("//!")
}

fn without_comment_marks(line: &str) -> &str {
    line.trim_start().trim_start_matches('/').trim_start_matches('!').trim_start()
}

fn shortened(text: &str) -> String {
    text.chars().take(90).collect()
}

//! Reads the floors of one crate from ARCHITECTURE.md.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// One module in the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) floor: u32,
    /// The line in ARCHITECTURE.md, from 1.
    pub(super) line: usize,
}

/// The floors of one crate.
#[derive(Debug, Default)]
pub(super) struct Floors {
    /// Each module with its entries; more than one is an error in the table.
    pub(super) modules: BTreeMap<String, Vec<Entry>>,
    /// Allowed imports (importer, imported) between folders on one floor, with their line.
    pub(super) exceptions: BTreeMap<(String, String), usize>,
}

impl Floors {
    /// Reads the section "## `name`: floors" of `page`.
    pub(super) fn parse(page: &str, name: &str) -> Result<Self> {
        let heading = format!("## {name}: floors");
        let lines: Vec<(usize, &str)> = (1..).zip(page.lines()).collect();
        let start = lines
            .iter()
            .position(|(_, line)| line.trim_end() == heading)
            .with_context(|| format!("ARCHITECTURE.md has no heading \"{heading}\""))?;
        let section: Vec<(usize, &str)> = lines[start + 1..]
            .iter()
            .copied()
            .take_while(|(_, line)| !line.starts_with("## "))
            .collect();
        let rows = section
            .iter()
            .skip_while(|(_, line)| cells(line).first().is_none_or(|cell| cell != "floor"))
            .skip(2)
            .take_while(|(_, line)| line.starts_with('|'));
        let mut floors = Self::default();
        for &(line, row) in rows {
            let cells = cells(row);
            ensure!(cells.len() >= 2, "ARCHITECTURE.md:{line}: a row needs a floor and modules");
            if cells[0] == "-" {
                continue;
            }
            let floor = cells[0]
                .parse()
                .with_context(|| format!("ARCHITECTURE.md:{line}: floor {:?}", cells[0]))?;
            for module in names_in_backticks(&without_parentheses(&cells[1])) {
                floors.modules.entry(module).or_default().push(Entry { floor, line });
            }
        }
        ensure!(!floors.modules.is_empty(), "\"{heading}\" has no table of floors");
        let paragraphs = section.split(|(_, line)| line.trim().is_empty());
        for paragraph in paragraphs.filter(|lines| !lines.is_empty()) {
            let text: Vec<&str> = paragraph.iter().map(|(_, line)| *line).collect();
            let Some(list) = text.join(" ").strip_prefix("Exceptions:").map(arrows) else {
                continue;
            };
            floors.exceptions.extend(list.into_iter().map(|pair| (pair, paragraph[0].0)));
        }
        Ok(floors)
    }

    /// The floor of `module`, if the table has it.
    pub(super) fn floor(&self, module: &str) -> Option<u32> {
        Some(self.modules.get(module)?.first()?.floor)
    }
}

/// Splits a table row into its trimmed cells. Other lines have none.
fn cells(line: &str) -> Vec<String> {
    let Some(row) = line.trim().strip_prefix('|') else { return Vec::new() };
    row.trim_end_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

fn without_parentheses(text: &str) -> String {
    let mut depth = 0_usize;
    let mut rest = String::new();
    for letter in text.chars() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 => rest.push(letter),
            _ => {}
        }
    }
    rest
}

/// Every second piece between backticks, without the slash of a folder.
fn names_in_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_owned()).collect()
}

/// The pairs of names that are joined by "->".
fn arrows(text: &str) -> Vec<(String, String)> {
    let pieces: Vec<&str> = text.split('`').collect();
    pieces
        .windows(3)
        .skip(1)
        .step_by(2)
        .filter(|window| window[1].trim() == "->")
        .map(|window| {
            let name = |text: &str| text.trim_end_matches('/').to_owned();
            (name(window[0]), name(window[2]))
        })
        .collect()
}

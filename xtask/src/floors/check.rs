//! Checks one crate against its floors.

use std::collections::BTreeSet;

use anyhow::Result;

use super::circles::Folders;
use super::table::Floors;
use super::tree::{ModulePath, Reference, Tree};
use super::{PAGE, Sources};

/// Returns one line for each break of the floors of the crate `name`.
pub(super) fn check(name: &str, page: &str, sources: &Sources) -> Result<Vec<String>> {
    let floors = Floors::parse(page, name)?;
    let tree = Tree::parse(name, sources)?;
    let src = format!("crates/{name}/src");
    let mut check =
        Check { floors, tree: &tree, src, findings: Vec::new(), used_exceptions: BTreeSet::new() };
    check.table();
    let mut folders = Folders::default();
    for reference in &tree.references {
        check.import(reference);
        check.add_to_folder(reference, &mut folders);
    }
    check.exceptions();
    check.findings.sort();
    check.findings.dedup();
    let mut findings: Vec<String> = check.findings.into_iter().map(|finding| finding.2).collect();
    findings.extend(folders.circles(&tree, &check.src));
    Ok(findings)
}

struct Check<'a> {
    floors: Floors,
    tree: &'a Tree,
    src: String,
    /// File, line and text, in this order for sorting.
    findings: Vec<(String, usize, String)>,
    used_exceptions: BTreeSet<(String, String)>,
}

impl Check<'_> {
    /// Every top-level module has one floor, and every module in the table exists.
    fn table(&mut self) {
        let src = &self.src;
        for (path, file) in &self.tree.files {
            if let [module] = path.as_slice()
                && !self.floors.modules.contains_key(module)
            {
                let text = format!("{src}/{file}: {module} has no floor in {PAGE}");
                self.findings.push((file.clone(), 0, text));
            }
        }
        for (module, entries) in &self.floors.modules {
            let line = entries[0].line;
            if !self.tree.files.contains_key(&vec![module.clone()]) {
                let text = format!("{PAGE}:{line}: there is no module {module} in {src}");
                self.findings.push((PAGE.to_owned(), line, text));
            }
            if let [_, second, ..] = entries.as_slice() {
                let text = format!("{PAGE}:{}: {module} has two floors", second.line);
                self.findings.push((PAGE.to_owned(), second.line, text));
            }
        }
    }

    /// An import leads to a lower floor, or to a file or an excepted folder on the same floor.
    fn import(&mut self, reference: &Reference) {
        let tree = self.tree;
        let Some(from) = reference.scope.first().filter(|from| self.floors.floor(from).is_some())
        else {
            return;
        };
        let home = &tree.modules[&reference.scope].home;
        let to =
            tree.absolute(&reference.scope, &reference.path).and_then(|path| tree.top_level(&path));
        let Some(to) = to.filter(|to| to != from) else { return };
        let (Some(lower), Some(upper)) = (self.floors.floor(from), self.floors.floor(&to)) else {
            return;
        };
        let are_folders = || self.is_folder(from) && self.is_folder(&to);
        let pair = (from.clone(), to.clone());
        if upper < lower || upper == lower && !are_folders() {
            return;
        }
        if upper == lower && self.floors.exceptions.contains_key(&pair) {
            self.used_exceptions.insert(pair);
            return;
        }
        let file = &tree.files[home];
        let text = format!(
            "{}/{file}:{}: {from} (floor {lower}) imports {to} (floor {upper})",
            self.src, reference.line
        );
        self.findings.push((file.clone(), reference.line, text));
    }

    /// Every exception allows an import that exists.
    fn exceptions(&mut self) {
        for (pair, line) in &self.floors.exceptions {
            if !self.used_exceptions.contains(pair) {
                let text = format!("{PAGE}:{line}: {} does not import {}", pair.0, pair.1);
                self.findings.push((PAGE.to_owned(), *line, text));
            }
        }
    }

    fn is_folder(&self, module: &str) -> bool {
        let mut files = self
            .tree
            .files
            .iter()
            .filter(|(path, _)| path.first().is_some_and(|name| name == module));
        files.any(|(path, file)| path.len() > 1 || file.ends_with("/mod.rs"))
    }
    /// Adds an import between two files of one folder to the graph of that folder.
    fn add_to_folder(&self, reference: &Reference, folders: &mut Folders) {
        let tree = self.tree;
        let home = &tree.modules[&reference.scope].home;
        // A re-export is an import only if this file uses the name itself.
        if let Some(name) = &reference.exported_as
            && !tree.used_names.get(home).is_some_and(|names| names.contains(name))
        {
            return;
        }
        let target = tree
            .absolute(&reference.scope, &reference.path)
            .and_then(|path| tree.definition(&path));
        let Some(target) = target else { return };
        // To import a parent module is no dependency; the paths through it are.
        let is_parent = target.is_module && home.starts_with(&target.module);
        if is_parent && !reference.is_glob {
            return;
        }
        let to = &tree.modules[&target.module].home;
        let floor = |module: &ModulePath| self.floors.floor(module.first()?);
        // An upward import is a finding of its own, and would close a circle of many floors.
        if home.first() == to.first() || floor(home) == floor(to) {
            folders.add(home, to, reference.line);
        }
    }
}

//! The modules of one crate, and the resolution of paths in them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::{Sources, collect};

/// The names of a module and its parents, without `crate`.
pub(super) type ModulePath = Vec<String>;

/// The number of aliases that a path may pass. A longer chain is an alias of itself.
const MAX_ALIASES: usize = 32;

/// The meaning of a name in a module.
#[derive(Debug)]
pub(super) enum Name {
    /// An item of this module.
    Defined,
    /// An import, by the path as written.
    Alias(Vec<String>),
}

/// A module that is part of the crate outside of tests.
#[derive(Debug)]
pub(super) struct Module {
    /// The module that its file stands for; another one only for an inline module.
    pub(super) home: ModulePath,
    pub(super) names: BTreeMap<String, Name>,
    /// The paths of glob imports, as written.
    pub(super) globs: Vec<Vec<String>>,
}

/// A path in an import or in code.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) scope: ModulePath,
    /// The path as written. Its first segment is empty for a path that begins with `::`.
    pub(super) path: Vec<String>,
    pub(super) line: usize,
    pub(super) is_glob: bool,
    /// The name under which a `pub use` exports the item.
    pub(super) exported_as: Option<String>,
}

/// The module that defines an item.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) module: ModulePath,
    /// The path names the module itself and not an item in it.
    pub(super) is_module: bool,
}

/// All modules and references of one crate.
#[derive(Debug)]
pub(super) struct Tree {
    /// The name by which the crate can refer to itself.
    pub(super) crate_name: String,
    pub(super) modules: BTreeMap<ModulePath, Module>,
    pub(super) references: Vec<Reference>,
    /// The file of each module that has one.
    pub(super) files: BTreeMap<ModulePath, String>,
    /// The names that the code of each file uses, without its imports.
    pub(super) used_names: BTreeMap<ModulePath, BTreeSet<String>>,
}

impl Tree {
    /// Parses the crate `name` from `lib.rs` on, and follows its `mod` declarations.
    pub(super) fn parse(name: &str, sources: &Sources) -> Result<Self> {
        let mut tree = Self {
            crate_name: name.replace('-', "_"),
            modules: BTreeMap::new(),
            references: Vec::new(),
            files: BTreeMap::new(),
            used_names: BTreeMap::new(),
        };
        collect::collect_file(&mut tree, sources, "lib.rs", Vec::new())?;
        Ok(tree)
    }

    /// Returns the path from the crate root, or `None` for a path into another crate.
    pub(super) fn absolute(&self, scope: &[String], path: &[String]) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        if first == "crate" || *first == self.crate_name {
            return Some(rest.to_vec());
        }
        if first.is_empty() {
            return (rest.first() == Some(&self.crate_name)).then(|| rest[1..].to_vec());
        }
        if first == "self" {
            return Some([scope, rest].concat());
        }
        if first == "super" {
            let (_, parent) = scope.split_last()?;
            let in_parent = [&["self".to_owned()], rest].concat();
            // `super::super`: the second one is relative to the parent.
            let next =
                if rest.first().is_some_and(|word| word == "super") { rest } else { &in_parent };
            return self.absolute(parent, next);
        }
        let module = self.modules.get(scope)?;
        let child = [scope, std::slice::from_ref(first)].concat();
        (module.names.contains_key(first) || self.modules.contains_key(&child))
            .then(|| [scope, path].concat())
    }

    /// Returns the top-level module that the absolute `path` names, through re-exports of lib.rs.
    pub(super) fn top_level(&self, path: &[String]) -> Option<String> {
        self.walk(path, true, 0)?.module.first().cloned()
    }

    /// Returns the module that defines what the absolute `path` names.
    pub(super) fn definition(&self, path: &[String]) -> Option<Target> {
        self.walk(path, false, 0)
    }

    fn walk(&self, path: &[String], stop_below_root: bool, aliases: usize) -> Option<Target> {
        if aliases > MAX_ALIASES {
            return None;
        }
        let mut at = ModulePath::new();
        for (index, name) in path.iter().enumerate() {
            let module = self.modules.get(&at)?;
            if stop_below_root && !module.home.is_empty() {
                break;
            }
            let rest = &path[index + 1..];
            let child = [at.as_slice(), std::slice::from_ref(name)].concat();
            let is_child = self.modules.contains_key(&child);
            match module.names.get(name) {
                _ if is_child && !rest.is_empty() => at = child,
                Some(Name::Defined) => return Some(Target { module: at, is_module: false }),
                Some(Name::Alias(alias)) => {
                    let target = self.absolute(&at, alias)?;
                    return self.walk(&[&target, rest].concat(), stop_below_root, aliases + 1);
                }
                None if is_child => at = child,
                None => {
                    let through_glob = self.through_globs(&at, module, name, aliases);
                    let Some(target) = through_glob else {
                        return Some(Target { module: at, is_module: false });
                    };
                    return self.walk(&[&target, rest].concat(), stop_below_root, aliases + 1);
                }
            }
        }
        Some(Target { module: at, is_module: true })
    }

    /// Returns the path of `name` in the first module that a glob import of `module` brings in.
    fn through_globs(
        &self,
        at: &[String],
        module: &Module,
        name: &String,
        aliases: usize,
    ) -> Option<ModulePath> {
        module.globs.iter().find_map(|glob| {
            let path = self.absolute(at, glob)?;
            let target = self.walk(&path, false, aliases + 1)?;
            let found = [target.module.as_slice(), std::slice::from_ref(name)].concat();
            let has_name = self.modules.get(&target.module)?.names.contains_key(name);
            (target.is_module && (has_name || self.modules.contains_key(&found))).then_some(found)
        })
    }
}

//! Reads the modules, imports and paths of source files into a [`Tree`].

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use proc_macro2::{Ident, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItem, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility};

use super::Sources;
use super::tree::{Module, ModulePath, Name, Reference, Tree};

/// Adds the module `path`, its file and all of its children to `tree`.
pub(super) fn collect_file(
    tree: &mut Tree,
    sources: &Sources,
    file: &str,
    path: ModulePath,
) -> Result<()> {
    let text = sources.get(file).with_context(|| format!("there is no file {file}"))?;
    let syntax = syn::parse_file(text).with_context(|| format!("cannot parse {file}"))?;
    let mut collector = Collector {
        tree: &mut *tree,
        home: path.clone(),
        scope: path.clone(),
        block_depth: 0,
        children: Vec::new(),
    };
    collector.open_module();
    collector.visit_file(&syntax);
    let children = collector.children;
    tree.files.insert(path, file.to_owned());
    for child in children {
        let stem = child.join("/");
        let candidates = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
        let child_file = candidates
            .iter()
            .find(|name| sources.contains_key(*name))
            .with_context(|| format!("{file} declares `mod` {stem}, which has no file"))?;
        collect_file(tree, sources, child_file, child)?;
    }
    Ok(())
}

struct Collector<'a> {
    tree: &'a mut Tree,
    home: ModulePath,
    scope: ModulePath,
    /// The number of function bodies around the current item; imports in them are local.
    block_depth: usize,
    /// Declared modules with a file of their own.
    children: Vec<ModulePath>,
}

impl Collector<'_> {
    fn open_module(&mut self) {
        let module = Module { home: self.home.clone(), names: BTreeMap::new(), globs: Vec::new() };
        self.tree.modules.insert(self.scope.clone(), module);
    }

    fn define(&mut self, name: String, meaning: Name) {
        if self.block_depth == 0
            && let Some(module) = self.tree.modules.get_mut(&self.scope)
        {
            module.names.insert(name, meaning);
        }
    }

    fn refer(&mut self, path: Vec<String>, line: usize) {
        self.use_name(&path[0]);
        if path.len() > 1 {
            let scope = self.scope.clone();
            self.tree.references.push(Reference {
                scope,
                path,
                line,
                is_glob: false,
                exported_as: None,
            });
        }
    }

    fn use_name(&mut self, name: &str) {
        self.tree.used_names.entry(self.home.clone()).or_default().insert(name.to_owned());
    }

    /// Adds the leaves of an import. `path` is what stands in front of `tree`.
    fn import(&mut self, tree: &UseTree, path: &[String], is_export: bool) {
        let (name, alias, line) = match tree {
            UseTree::Path(next) => {
                let longer = [path, &[text_of(&next.ident)]].concat();
                return self.import(&next.tree, &longer, is_export);
            }
            UseTree::Group(group) => {
                for item in &group.items {
                    self.import(item, path, is_export);
                }
                return;
            }
            UseTree::Name(leaf) => (text_of(&leaf.ident), None, line_of(&leaf.ident)),
            UseTree::Rename(leaf) => {
                (text_of(&leaf.ident), Some(text_of(&leaf.rename)), line_of(&leaf.ident))
            }
            UseTree::Glob(leaf) => ("*".to_owned(), None, leaf.star_token.spans[0].start().line),
        };
        let mut whole = path.to_vec();
        // `use a::{self}` imports `a`.
        if name != "*" && (name != "self" || path.is_empty()) {
            whole.push(name.clone());
        }
        let bound = alias.or_else(|| whole.last().cloned()).unwrap_or_default();
        let is_glob = name == "*";
        if !is_glob {
            self.define(bound.clone(), Name::Alias(whole.clone()));
        } else if self.block_depth == 0
            && let Some(module) = self.tree.modules.get_mut(&self.scope)
        {
            module.globs.push(whole.clone());
        }
        let exported_as = is_export.then_some(bound);
        let scope = self.scope.clone();
        self.tree.references.push(Reference { scope, path: whole, line, is_glob, exported_as });
    }

    /// Finds paths in the tokens of a macro, which syn does not parse.
    fn scan(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        self.refer(std::mem::take(&mut path), line);
                    }
                    if path.is_empty() {
                        line = line_of(&ident);
                        // `::name` without a segment in front of it names a crate.
                        path.extend((colons == 2).then(String::new));
                    }
                    path.push(text_of(&ident));
                    colons = 0;
                }
                TokenTree::Punct(mark) if mark.as_char() == ':' && colons < 2 => colons += 1,
                other => {
                    if !path.is_empty() {
                        self.refer(std::mem::take(&mut path), line);
                    }
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.scan(group.stream());
                    }
                }
            }
        }
        if !path.is_empty() {
            self.refer(path, line);
        }
    }
}

impl<'ast> Visit<'ast> for Collector<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = describe(item);
        if attributes.iter().any(is_test_only) {
            return;
        }
        if let Some(name) = name {
            self.define(text_of(name), Name::Defined);
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let is_test = match item {
            ImplItem::Fn(function) => function.attrs.iter().any(is_test_only),
            ImplItem::Const(constant) => constant.attrs.iter().any(is_test_only),
            _ => false,
        };
        if !is_test {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = text_of(&module.ident);
        let is_exempt = name == "models" || name == "tests" || name.ends_with("_tests");
        if is_exempt {
            return;
        }
        self.scope.push(name);
        match &module.content {
            None => self.children.push(self.scope.clone()),
            Some((_, items)) => {
                self.open_module();
                for item in items {
                    self.visit_item(item);
                }
            }
        }
        self.scope.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_export = !matches!(item.vis, Visibility::Inherited);
        let start = item.leading_colon.map(|_| String::new());
        self.import(&item.tree, start.as_slice(), is_export);
    }

    fn visit_block(&mut self, block: &'ast Block) {
        self.block_depth += 1;
        visit::visit_block(self, block);
        self.block_depth -= 1;
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let line = path.segments.first().map_or(0, |segment| line_of(&segment.ident));
        let names = path.segments.iter().map(|segment| text_of(&segment.ident));
        self.refer(
            path.leading_colon.map(|_| String::new()).into_iter().chain(names).collect(),
            line,
        );
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.scan(call.tokens.clone());
    }

    /// `pub(in crate::a)` is not an import.
    fn visit_visibility(&mut self, _visibility: &'ast Visibility) {}

    /// Doc comments and other attributes are not imports.
    fn visit_attribute(&mut self, _attribute: &'ast Attribute) {}
}

/// Returns the attributes of `item`, and its name unless it is a module or an import.
fn describe(item: &Item) -> (&[Attribute], Option<&Ident>) {
    match item {
        Item::Const(item) => (&item.attrs, Some(&item.ident)),
        Item::Enum(item) => (&item.attrs, Some(&item.ident)),
        Item::ExternCrate(item) => (&item.attrs, None),
        Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
        Item::Impl(item) => (&item.attrs, None),
        Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
        Item::Mod(item) => (&item.attrs, None),
        Item::Static(item) => (&item.attrs, Some(&item.ident)),
        Item::Struct(item) => (&item.attrs, Some(&item.ident)),
        Item::Trait(item) => (&item.attrs, Some(&item.ident)),
        Item::Type(item) => (&item.attrs, Some(&item.ident)),
        Item::Union(item) => (&item.attrs, Some(&item.ident)),
        Item::Use(item) => (&item.attrs, None),
        _ => (&[], None),
    }
}

/// Returns whether an attribute is a `cfg` that only holds in tests.
fn is_test_only(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<Meta>().is_ok_and(|condition| requires_test(&condition))
}

fn requires_test(condition: &Meta) -> bool {
    match condition {
        Meta::Path(path) => path.is_ident("test"),
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated)
            .is_ok_and(|parts| parts.iter().any(requires_test)),
        _ => false,
    }
}

/// The name without `r#`.
fn text_of(ident: &Ident) -> String {
    let text = ident.to_string();
    text.strip_prefix("r#").map(ToOwned::to_owned).unwrap_or(text)
}

fn line_of(ident: &Ident) -> usize {
    ident.span().start().line
}

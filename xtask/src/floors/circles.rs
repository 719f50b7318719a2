//! Circles of imports among the files of each folder.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::tree::{ModulePath, Tree};

/// A file or subfolder in a folder, by its module name; `None` is the module of the folder itself.
type Node = Option<String>;

/// The imports within one folder, each with the module and line of the first one.
type Graph = BTreeMap<Node, BTreeMap<Node, (ModulePath, usize)>>;

/// The imports among the files of each folder.
#[derive(Default)]
pub(super) struct Folders {
    graphs: BTreeMap<ModulePath, Graph>,
}

impl Folders {
    /// Adds an import of the module `to` by the module `from`.
    pub(super) fn add(&mut self, from: &ModulePath, to: &ModulePath, line: usize) {
        let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
        // lib.rs declares and exports everything, so it is no file of the folder `src`.
        if from == to || from.is_empty() || to.is_empty() {
            return;
        }
        let graph = self.graphs.entry(from[..shared].to_vec()).or_default();
        let edges = graph.entry(from.get(shared).cloned()).or_default();
        edges.entry(to.get(shared).cloned()).or_insert_with(|| (from.clone(), line));
    }

    /// Returns the shortest circle through each file, as text without duplicates.
    pub(super) fn circles(&self, tree: &Tree, src: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (folder, graph) in &self.graphs {
            let circles: BTreeSet<Vec<Node>> =
                graph.keys().filter_map(|start| shortest_circle(graph, start)).collect();
            for circle in circles {
                let place = [&[src.to_owned()], folder.as_slice()].concat().join("/");
                let mut text = format!("{place}: circle: ");
                let edges = circle.iter().zip(circle.iter().cycle().skip(1));
                for (module, line) in edges.map(|(node, next)| &graph[node][next]) {
                    text += &format!("{}:{line} -> ", file_name(tree, folder, module));
                }
                let (start, _) = &graph[&circle[0]][&circle[1 % circle.len()]];
                found.push(text + file_name(tree, folder, start));
            }
        }
        found
    }
}

/// Returns the shortest circle through `start`, from its smallest node on.
fn shortest_circle(graph: &Graph, start: &Node) -> Option<Vec<Node>> {
    let mut came_from: BTreeMap<&Node, &Node> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(node) = queue.pop_front() {
        for next in graph.get(node).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                let mut circle = vec![node.clone()];
                let mut at = node;
                while at != start {
                    at = came_from[at];
                    circle.push(at.clone());
                }
                circle.reverse();
                let smallest = circle.iter().enumerate().min_by_key(|(_, node)| *node)?.0;
                circle.rotate_left(smallest);
                return Some(circle);
            }
            if !came_from.contains_key(next) {
                came_from.insert(next, node);
                queue.push_back(next);
            }
        }
    }
    None
}

/// Returns the path of a module's file below `folder`.
fn file_name<'a>(tree: &'a Tree, folder: &ModulePath, module: &ModulePath) -> &'a str {
    let file = tree.files.get(module).map_or("", String::as_str);
    let prefix = format!("{}/", folder.join("/"));
    // The module of the folder may be beside it: `folder.rs`.
    file.strip_prefix(&prefix).unwrap_or_else(|| file.rsplit('/').next().unwrap_or_default())
}

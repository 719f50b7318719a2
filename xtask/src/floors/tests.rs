use super::Sources;
use super::check::check;

const FLOORS: &str = "\
# Architecture

## demo: floors

Intro with a `word`.

| floor | module | job |
|---|---|---|
| 2 | `top/`, `side` | uses `low` |
| 1 | `left/`, `right` (feature `extra`) | |
| 0 | `low` | |

Exceptions: `right` -> `left`, because
of a reason with `code`.

## other: floors
";

/// A crate without findings. `right` is a folder that may import `left`.
fn clean_crate() -> Sources {
    sources(&[
        ("lib.rs", "mod left; mod low; mod right; mod side; mod top; pub use low::Low;"),
        ("low.rs", "pub struct Low;"),
        ("left/mod.rs", "mod part; pub use part::Part; use crate::Low;"),
        ("left/part.rs", "use crate::low::Low; pub struct Part(Low);"),
        ("right/mod.rs", "use crate::left::Part; pub struct Right(Part);"),
        ("side.rs", "use crate::top::Top;"),
        ("top/mod.rs", "pub struct Top(crate::right::Right);"),
    ])
}

fn sources(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Returns the findings of the clean crate after `changes`.
fn findings(changes: &[(&str, &str)]) -> Vec<String> {
    let mut crate_sources = clean_crate();
    crate_sources.extend(sources(changes));
    check("demo", FLOORS, &crate_sources).unwrap()
}

/// The finding for an import of `top` on the first line of low.rs.
const UPWARD: &str = "crates/demo/src/low.rs:1: low (floor 0) imports top (floor 2)";

#[test]
fn clean_crate_has_no_findings() {
    assert_eq!(findings(&[]), Vec::<String>::new());
}

#[test]
fn import_of_a_higher_floor_is_found() {
    let file = |text: &str| findings(&[("low.rs", text)]);
    assert_eq!(file("use crate::top::Top; pub struct Low;"), [UPWARD]);
    assert_eq!(file("use super::top; pub struct Low;"), [UPWARD]);
    assert_eq!(file("use demo::top::Top; pub struct Low;"), [UPWARD]);
    assert_eq!(file("pub struct Low; impl Low { fn f(_: &crate::top::Top) {} }"), [UPWARD]);
    assert_eq!(file("pub struct Low; fn f() { super::top::f(); }"), [UPWARD]);
}

#[test]
fn grouped_imports_are_found_on_their_own_line() {
    let text = "pub struct Low;\nuse crate::{\n    left::Part,\n    top::{self, Top},\n};";
    assert_eq!(
        findings(&[("low.rs", text)]),
        [
            "crates/demo/src/low.rs:3: low (floor 0) imports left (floor 1)",
            "crates/demo/src/low.rs:4: low (floor 0) imports top (floor 2)",
        ]
    );
}

#[test]
fn paths_in_macros_are_found() {
    let file = |text: &str| findings(&[("low.rs", text)]);
    assert_eq!(file("pub struct Low; fn f() { trace!(a, { crate::top::X }); }"), [UPWARD]);
    assert_eq!(file("pub struct Low; macro_rules! m { () => { $crate::top::X }; }"), [UPWARD]);
    assert_eq!(file("pub struct Low; fn f() { trace!(top, b: top); }"), Vec::<String>::new());
}

#[test]
fn items_of_the_crate_root_belong_to_the_module_they_come_from() {
    let lib = "mod left; mod low; mod right; mod side; mod top; \
        pub use top::Top; pub mod codegen { pub use crate::top::Top as Codegen; }";
    let file = |text: &str| findings(&[("lib.rs", lib), ("left/mod.rs", ""), ("low.rs", text)]);
    assert_eq!(file("use crate::Top; pub struct Low;"), [UPWARD]);
    assert_eq!(file("use crate::codegen::Codegen; pub struct Low;"), [UPWARD]);
}

#[test]
fn docs_visibilities_and_tests_are_not_imports() {
    let text = "//! See [crate::top::Top].\n\
        pub(in crate::top) struct Low;\n\
        #[cfg(test)] use crate::top::Top;\n\
        #[cfg(all(test, unix))] mod tests { use crate::top::Top; }\n\
        impl Low { #[cfg(test)] fn f() { crate::top::f() } }";
    assert_eq!(findings(&[("low.rs", text)]), Vec::<String>::new());
    let text = "pub struct Low; #[cfg(not(test))] use crate::top::Top;";
    assert_eq!(findings(&[("low.rs", text)]), [UPWARD]);
}

#[test]
fn other_crates_are_not_modules_of_the_same_name() {
    let text = "pub struct Low; use ::top::Top; use top::Other; fn f() { ::top::f(); top::f(); }";
    assert_eq!(findings(&[("low.rs", text)]), Vec::<String>::new());
}

#[test]
fn module_without_floor_and_floor_without_module_are_found() {
    let lib = "mod left; mod low; mod right; mod top; mod new; #[cfg(test)] mod models;";
    assert_eq!(
        findings(&[("lib.rs", lib), ("new.rs", ""), ("left/mod.rs", "")]),
        [
            "ARCHITECTURE.md:9: there is no module side in crates/demo/src",
            "crates/demo/src/new.rs: new has no floor in ARCHITECTURE.md",
        ]
    );
}

#[test]
fn module_with_two_floors_is_found() {
    let page = FLOORS.replace("| 0 | `low` |", "| 0 | `low`, `side` |");
    assert_eq!(
        check("demo", &page, &clean_crate()).unwrap(),
        ["ARCHITECTURE.md:11: side has two floors"]
    );
}

#[test]
fn folders_on_one_floor_import_each_other_only_by_exception() {
    let page = FLOORS.replace("Exceptions:", "Note:");
    assert_eq!(
        check("demo", &page, &clean_crate()).unwrap(),
        ["crates/demo/src/right/mod.rs:1: right (floor 1) imports left (floor 1)"]
    );
    assert_eq!(
        findings(&[("right/mod.rs", "pub struct Right;")]),
        ["ARCHITECTURE.md:13: right does not import left"]
    );
}

#[test]
fn circle_of_files_in_a_folder_is_found() {
    let changes = [
        ("left/mod.rs", "mod part; mod piece; mod third; pub use part::Part;"),
        ("left/part.rs", "\nuse super::piece::Piece; pub struct Part(Piece);"),
        ("left/piece.rs", "use crate::left::third; pub struct Piece(third::Third);"),
        ("left/third.rs", "use super::Part; pub struct Third(Part);"),
    ];
    assert_eq!(
        findings(&changes),
        ["crates/demo/src/left: circle: part.rs:2 -> piece.rs:1 -> third.rs:1 -> part.rs"]
    );
}

#[test]
fn circle_through_mod_rs_is_found_only_for_items_it_defines() {
    let with_mod = |text| {
        findings(&[
            ("left/mod.rs", text),
            ("left/part.rs", "use super::Whole; pub struct Part(Whole);"),
            ("left/whole.rs", "pub struct Whole;"),
        ])
    };
    let circle = ["crates/demo/src/left: circle: mod.rs:1 -> part.rs:1 -> mod.rs"];
    let exported = "mod part; mod whole; pub use part::Part; pub use whole::Whole;";
    assert_eq!(with_mod(exported), Vec::<String>::new());
    let defined = "mod part; pub use part::Part; pub struct Whole;";
    assert_eq!(with_mod(defined), Vec::<String>::new());
    assert_eq!(with_mod("mod part; pub use part::Part; pub struct Whole(Part);"), circle);
    assert_eq!(with_mod("mod part; use part::Part; pub struct Whole(Part);"), circle);
    let by_path = "mod part; pub use part::Part; pub struct Whole; fn f() { part::f() }";
    assert_eq!(with_mod(by_path), circle);
}

#[test]
fn module_beside_its_folder_is_a_file_of_that_folder() {
    let changes = [
        ("side.rs", "mod part; use part::Part; pub struct Side(Part);"),
        ("side/part.rs", "use super::Side; pub struct Part(Side);"),
    ];
    assert_eq!(
        findings(&changes),
        ["crates/demo/src/side: circle: side.rs:1 -> part.rs:1 -> side.rs"]
    );
}

#[test]
fn glob_reexports_lead_to_the_file_of_the_item() {
    let changes = [
        ("left/mod.rs", "mod part; mod piece; pub use part::*; pub use piece::Piece;"),
        ("left/part.rs", "use super::Piece; pub struct Part(Piece);"),
        ("left/piece.rs", "use super::Part; pub struct Piece(Part);"),
    ];
    assert_eq!(
        findings(&changes),
        ["crates/demo/src/left: circle: part.rs:1 -> piece.rs:1 -> part.rs"]
    );
}

#[test]
fn circle_of_top_level_files_on_one_floor_is_found() {
    let page = FLOORS.replace("| 0 | `low` |", "| 0 | `low`, `base` |");
    let mut changed = clean_crate();
    changed.extend(sources(&[
        ("lib.rs", "mod base; mod left; mod low; mod right; mod side; mod top; pub use low::Low;"),
        ("base.rs", "pub struct Base(crate::Low);"),
    ]));
    assert_eq!(check("demo", &page, &changed).unwrap(), Vec::<String>::new());
    changed.extend(sources(&[("low.rs", "pub struct Low(crate::base::Base);")]));
    assert_eq!(
        check("demo", &page, &changed).unwrap(),
        ["crates/demo/src: circle: base.rs:1 -> low.rs:1 -> base.rs"]
    );
}

#[test]
fn subfolder_is_one_file_of_its_folder() {
    let changes = [
        ("left/mod.rs", "mod part; mod piece; pub use part::Part;"),
        ("left/part.rs", "use super::piece::Piece; pub struct Part(Piece);"),
        ("left/piece/mod.rs", "mod tiny; pub use tiny::Piece;"),
        ("left/piece/tiny.rs", "\nuse crate::left::Part; pub struct Piece(Part);"),
    ];
    assert_eq!(
        findings(&changes),
        ["crates/demo/src/left: circle: part.rs:1 -> piece/tiny.rs:2 -> part.rs"]
    );
}

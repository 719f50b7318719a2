use super::*;

/// Returns the number of findings of `kind` in the file `name`.
fn count(kind: &str, name: &str, text: &str) -> usize {
    let mut reader = Reader::new().unwrap();
    reader.read(name, text);
    reader.findings().get(kind).map_or(0, Vec::len)
}

#[test]
fn prose_check_reports_each_kind_of_finding() {
    let long = "x".repeat(101);
    assert_eq!(count(TOO_LONG, "a.md", &long), 1);
    assert_eq!(count(TOO_LONG, "a.md", &format!("| {long} |\nhttps://{long}")), 0);
    // The phrase is not written out here, so that `cargo xtask prose` does not find it.
    let phrase = ["for", "ever"].join(" ");
    assert_eq!(count(UNCLEAR_WORD, "a.rs", &format!("a(); // Runs {phrase}.")), 1);
    assert_eq!(count(UNCLEAR_WORD, "a.rs", &format!("{phrase}(); // Runs {phrase}y time.")), 0);
    assert_eq!(count(UNCLEAR_WORD, "a.md", &format!("Runs {phrase}.\n```\n{phrase}\n```")), 1);
    assert_eq!(count(FRAGMENT, "a.rs", "/// Whether it runs.\n/// What it does.\n"), 1);
    let name = "x".repeat(71);
    assert_eq!(count(LONG_NAME, "a.rs", &format!("    async fn {name}() {{}}")), 1);
    let duplicated_type = "struct A;\nmod b {\n    pub(crate) enum A {}\n}\n";
    assert_eq!(count(DUPLICATE_TYPE, "a/src/b.rs", duplicated_type), 1);
    assert_eq!(count(DUPLICATE_TYPE, "a/tests/b.rs", duplicated_type), 0);
    let type_and_test_type = "struct A;\n#[cfg(test)]\nmod tests {\n    struct A;\n}\n";
    assert_eq!(count(DUPLICATE_TYPE, "a/src/b.rs", type_and_test_type), 0);
}

#[test]
fn prose_check_finds_nothing_in_its_own_word_list() {
    let mut reader = Reader::new().unwrap();
    reader.read("xtask/src/prose.rs", include_str!("prose.rs"));
    assert_eq!(reader.findings(), Findings::new());
}

use super::*;

/// Returns the number of signs of `kind` in the file `name`.
fn count(kind: &str, name: &str, text: &str) -> usize {
    let mut reader = Reader::new().unwrap();
    reader.read(name, text);
    reader.signs().get(kind).map_or(0, Vec::len)
}

#[test]
fn each_kind_of_sign_is_found() {
    let long = "x".repeat(101);
    assert_eq!(count(TOO_LONG, "a.md", &long), 1);
    assert_eq!(count(TOO_LONG, "a.md", &format!("| {long} |\nhttps://{long}")), 0);
    let riddle = ["for", "ever"].join(" ");
    assert_eq!(count(RIDDLE, "a.rs", &format!("a(); // Runs {riddle}.")), 1);
    assert_eq!(count(RIDDLE, "a.rs", &format!("{riddle}(); // Runs {riddle}y time.")), 0);
    assert_eq!(count(RIDDLE, "a.md", &format!("Runs {riddle}.\n```\n{riddle}\n```")), 1);
    assert_eq!(count(FRAGMENT, "a.rs", "/// Whether it runs.\n/// What it does.\n"), 1);
    let name = "x".repeat(71);
    assert_eq!(count(LONG_NAME, "a.rs", &format!("    async fn {name}() {{}}")), 1);
    let types = "struct A;\nmod b {\n    pub(crate) enum A {}\n}\n";
    assert_eq!(count(DUPLICATE_TYPE, "a/src/b.rs", types), 1);
    assert_eq!(count(DUPLICATE_TYPE, "a/tests/b.rs", types), 0);
    let tested = "struct A;\n#[cfg(test)]\nmod tests {\n    struct A;\n}\n";
    assert_eq!(count(DUPLICATE_TYPE, "a/src/b.rs", tested), 0);
}

#[test]
fn word_list_does_not_find_itself() {
    let mut reader = Reader::new().unwrap();
    reader.read("xtask/src/prose.rs", include_str!("prose.rs"));
    assert_eq!(reader.signs(), Signs::new());
}

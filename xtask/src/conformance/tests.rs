use super::*;

const ROWS: &str = "\
Text.
<!-- begin of rows -->
| id | rule | origin | tests |
|---|---|---|---|
| `rpc_env_07` | An ask ends. | ours | `old` |
| `rsp_04` | A response arrives. | ours | |
| `rsp_05` | A failure arrives. | ours |
| `fault_c1` | A successor serves. | ours | |
<!-- end of rows -->
| `met_02` | `Suite`: test | There is no allocator. |
";

const TESTS: &str = "\
#[test]
fn rpc_env_07_ask_ends() {}
fn rpc_env_07_helper() {}
#[tokio::test(flavor = \"multi_thread\")]
async fn rsp_04_05_responses_arrive() {}
proptest! {
    #[test]
    fn rsp_04_and_05_any_response_arrives(x in 0..3) { inner(x) }
}
mod tests {
    #[test]
    fn fault_c1_successor_serves() {}
    #[test]
    fn asks_of_16_clients_succeed_on_route_0_too() {}
}
";

/// Returns the updated page and the findings for a page and files of Rust code.
fn updated(page: &str, code: &[&str]) -> (String, Vec<String>) {
    let files = (0..).zip(code).map(|(n, text)| (format!("crates/{n}.rs"), (*text).to_owned()));
    update(&files.chain([(PAGE.to_owned(), page.to_owned())]).collect()).unwrap()
}

/// Returns the findings for the page `ROWS`, its tests and more code.
fn findings(code: &str) -> Vec<String> {
    updated(ROWS, &[TESTS, code]).1
}

#[test]
fn tests_are_written_sorted_into_their_rows() {
    let (page, found) = updated(ROWS, &[TESTS]);
    assert_eq!(found, Vec::<String>::new());
    let rows: Vec<_> = page.lines().skip(4).take(4).collect();
    let responses = "`rsp_04_05_responses_arrive`, `rsp_04_and_05_any_response_arrives`";
    assert_eq!(
        rows,
        [
            "| `rpc_env_07` | An ask ends. | ours | `rpc_env_07_ask_ends` |",
            &format!("| `rsp_04` | A response arrives. | ours | {responses} |"),
            &format!("| `rsp_05` | A failure arrives. | ours | {responses} |"),
            "| `fault_c1` | A successor serves. | ours | `fault_c1_successor_serves` |",
        ]
    );
    assert_eq!(page.lines().last(), ROWS.lines().last(), "other lines must stay");
    assert_eq!(updated(&page, &[TESTS]), (page, found), "a second update must change nothing");
}

#[test]
fn test_names_without_row_are_reported() {
    let expected = |name: &str, id: &str| format!("crates/1.rs:1: `{id}` of {name} has no row");
    for (name, id) in [
        ("rsp_06_x", "rsp_06"),
        ("rsp_4_x", "rsp_4"),
        ("new_area_01_x", "new_area_01"),
        ("fault_t13_x", "fault_t13"),
    ] {
        assert_eq!(findings(&format!("#[test] fn {name}() {{}}")), [expected(name, id)]);
        let in_macro = format!("make! {{ fn {name}() {{}} }}");
        assert_eq!(findings(&in_macro), [expected(name, id)]);
        assert!(findings(&format!("fn {name}() {{}}")).is_empty(), "{name} is no test");
    }
}

#[test]
fn citations_without_row_or_in_upper_case_are_reported() {
    for (comment, text) in [
        ("`rsp_06`", "`rsp_06` has no row"),
        ("RSP-06", "`rsp_06` has no row"),
        ("rows NEW-01", "`new_01` has no row"),
        ("`fault_u1`", "`fault_u1` has no row"),
        ("RPC-ENV-07", "write `rpc_env_07` instead of RPC-ENV-07"),
    ] {
        assert_eq!(findings(&format!("\n// {comment}.")), [format!("crates/1.rs:2: {text}")]);
    }
    for harmless in ["`met_02` and `fault_c1`", "SPARK-16743", "UTF-16", "`port_16`", "rsp_06_x"] {
        assert_eq!(findings(&format!("// {harmless}")), Vec::<String>::new());
    }
    let code = "fn main() { let rsp_06 = 1; }";
    assert_eq!(findings(code), Vec::<String>::new(), "code outside of comments cites nothing");
}

#[test]
fn rows_that_are_wrong_are_reported() {
    let row = |id: &str, place: &str| {
        let new = format!("| `{id}` | A rule. | ours |\n{place}");
        updated(&ROWS.replace(place, &new), &[TESTS]).1
    };
    let end = "<!-- end of rows -->";
    assert_eq!(
        row("rsp_06", end),
        ["docs/conformance.md:9: `rsp_06` has no test: write one, or move the row"]
    );
    assert_eq!(row("rsp_05", end), ["docs/conformance.md:9: `rsp_05` has two rows"]);
    let moved = ROWS.replace("| `rsp_05`", &format!("{end}\n| `rsp_05`"));
    let found = updated(&moved, &[TESTS]).1;
    let expected = "`rsp_05` has tests, so it is not \"Not covered\"";
    assert_eq!(found[0], format!("docs/conformance.md:8: {expected}"));
    let (page, found) = updated(&ROWS.replace("An ask ends.", "An | ask | ends."), &[TESTS]);
    assert!(found[0].contains("must have 3 or 4 cells"), "{found:?}");
    assert!(page.contains("| An | ask | ends. |"), "such a row must stay as it is: {page}");
    assert!(update(&Sources::from([(PAGE.to_owned(), "no markers".to_owned())])).is_err());
}

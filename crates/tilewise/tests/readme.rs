//! The README's example is the one that is compiled and run.

#[test]
fn the_readme_shows_an_example_that_runs() {
    let readme = include_str!("../../../README.md");
    let example = include_str!("../examples/ragged.rs");
    let (_, code) = example.split_once("\n\n").unwrap();
    let (code, _) = code.split_once("\n#[test]").unwrap();
    assert!(readme.contains(&format!("```rust\n{code}```\n")), "README.md and examples/ragged.rs differ");
}

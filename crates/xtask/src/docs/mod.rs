//! `cargo xtask docs`: pages that are made of the records in `bench/records` and of the code.
//!
//! `docs/measured.md`, `docs/speed.svg` and the marked part of the README come from the records; `docs/commands.md` and
//! the rules in `docs/measured.md` come from `tilewise docs`. `--check` writes nothing and names what is out of date.

mod chart;
mod measured;
mod records;

use std::path::Path;
use std::process::Command;

use records::Record;

/// Marks the generated part of the README.
const BEGIN: &str = "<!-- The rows up to the next mark are written by `cargo xtask docs`. -->\n";
const END: &str = "<!-- End of the written rows. -->\n";

/// A generated file.
struct Page {
    /// From the root of the repository.
    path: &'static str,
    text: String,
}

/// Writes the pages below `root`, or with `check` compares them; names those that differ from what is there. Without a
/// `binary`, `tilewise` is built.
///
/// # Errors
/// A sentence about what cannot be read, run or written.
pub(crate) fn run(root: &Path, binary: Option<&str>, check: bool) -> Result<Vec<&'static str>, String> {
    let mut changed = Vec::new();
    for page in pages(root, binary)? {
        let path = root.join(page.path);
        if std::fs::read_to_string(&path).is_ok_and(|there| there == page.text) {
            continue;
        }
        changed.push(page.path);
        if !check {
            std::fs::write(&path, page.text).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok(changed)
}

fn pages(root: &Path, binary: Option<&str>) -> Result<Vec<Page>, String> {
    let records = records::read(&root.join("bench/records"))?;
    let readme = root.join("README.md");
    let readme = std::fs::read_to_string(&readme).map_err(|e| format!("{}: {e}", readme.display()))?;
    let rules = tilewise(root, binary, "kernels")?;
    Ok(vec![
        Page { path: "docs/measured.md", text: measured::page(&records, &rules) },
        Page { path: "docs/speed.svg", text: chart::svg(&records)? },
        Page { path: "docs/commands.md", text: tilewise(root, binary, "commands")? },
        Page { path: "README.md", text: replace_rows(&readme, &measured::readme_rows(&records)?)? },
    ])
}

/// What `tilewise docs TOPIC` prints.
fn tilewise(root: &Path, binary: Option<&str>, topic: &str) -> Result<String, String> {
    let mut command = match binary {
        Some(path) => Command::new(root.join(path)),
        None => {
            let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            cargo.args(["run", "--quiet", "--package", "tilewise-cli", "--"]);
            cargo
        }
    };
    command.args(["docs", topic]).current_dir(root);
    let output = command.output().map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if !output.status.success() {
        return Err(format!("tilewise docs {topic}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    String::from_utf8(output.stdout).map_err(|e| format!("tilewise docs {topic}: {e}"))
}

/// The README with other rows between its marks.
fn replace_rows(readme: &str, rows: &str) -> Result<String, String> {
    let cut = readme.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = cut.ok_or("README.md has lost the marks around its measured rows")?;
    Ok(format!("{before}{BEGIN}{rows}{END}{after}"))
}

/// Finds the record that `wanted` describes. Where it was measured more than once, the one that speaks least for
/// Tilewise is taken.
fn find<'a>(records: &'a [Record], wanted: &Wanted) -> Result<&'a Record, String> {
    let is_it = |record: &&Record| {
        (
            record.file.as_str(),
            record.get("benchmark"),
            record.get("shape"),
            record.get("dtype"),
            record.get("peer"),
        ) == (wanted.file, wanted.benchmark, wanted.shape, wanted.dtype, wanted.peer)
    };
    let matching = records.iter().filter(is_it);
    let least = matching.min_by(|a, b| a.number("ratio").total_cmp(&b.number("ratio")));
    least.ok_or_else(|| {
        format!("no record of {} {} {} in {}", wanted.benchmark, wanted.shape, wanted.dtype, wanted.file)
    })
}

/// A record by its columns, and what to call it.
struct Wanted {
    file: &'static str,
    benchmark: &'static str,
    shape: &'static str,
    dtype: &'static str,
    /// Empty where the record has none.
    peer: &'static str,
    name: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_replaced_between_the_marks_alone() {
        let readme = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replace_rows(&readme, "new\n").unwrap(), format!("a\n{BEGIN}new\n{END}b\n"));
        assert!(replace_rows("a\n", "new\n").is_err());
    }

    #[test]
    fn what_comes_from_records_alone_is_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let records = records::read(&root.join("bench/records")).unwrap();
        let there = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
        let readme = there("README.md");
        assert!(there("docs/speed.svg") == chart::svg(&records).unwrap(), "run cargo xtask docs");
        let rows = measured::readme_rows(&records).unwrap();
        assert!(readme == replace_rows(&readme, &rows).unwrap(), "run cargo xtask docs");
        assert!(there("docs/measured.md").starts_with(&measured::page(&records, "")), "run cargo xtask docs");
    }
}

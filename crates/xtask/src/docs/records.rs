//! Reads the records: CSV files with a header, one measurement a row.

use std::path::Path;

/// A measurement.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// The name of its file.
    pub(super) file: String,
    /// Columns and values, in order.
    pub(super) fields: Vec<(String, String)>,
}

impl Record {
    /// The value of a column; empty where there is none.
    pub(super) fn get(&self, column: &str) -> &str {
        self.fields.iter().find(|(name, _)| name == column).map_or("", |(_, value)| value)
    }

    /// The value of a column as a number; NaN where it is none.
    pub(super) fn number(&self, column: &str) -> f64 {
        self.get(column).parse().unwrap_or(f64::NAN)
    }
}

/// All records of a folder, by the names of their files.
///
/// # Errors
/// A sentence that names the file, and the line if one has more or fewer fields than the header.
pub(super) fn read(folder: &Path) -> Result<Vec<Record>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", folder.display());
    let entries = std::fs::read_dir(folder).map_err(failed)?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    paths.sort();
    let mut records = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        records.extend(parse(&file, &text)?);
    }
    Ok(records)
}

/// The records of one file.
fn parse(file: &str, text: &str) -> Result<Vec<Record>, String> {
    let mut lines = text.lines();
    let columns = fields(lines.next().unwrap_or_default());
    let row = |(index, line)| {
        let values = fields(line);
        if values.len() != columns.len() {
            let (got, line) = (values.len(), index + 2);
            return Err(format!("{file}, line {line}: {got} fields where the header has {}", columns.len()));
        }
        Ok(Record { file: file.to_owned(), fields: columns.iter().cloned().zip(values).collect() })
    };
    lines.enumerate().filter(|(_, line)| !line.is_empty()).map(row).collect()
}

/// Fields of a line; one in quotation marks may hold commas, and doubled marks.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.len() - 1;
        match character {
            '"' if is_quoted && characters.peek() == Some(&'"') => {
                characters.next();
                fields[field].push('"');
            }
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            _ => fields[field].push(character),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_hold_commas_and_marks() {
        assert_eq!(fields(r#"a,"b, ""c""",,d"#), ["a", r#"b, "c""#, "", "d"]);
    }

    #[test]
    fn a_row_of_another_length_is_named() {
        assert!(parse("x.csv", "a,b\n1,2\n3\n").unwrap_err().contains("x.csv, line 3"));
        let records = parse("x.csv", "a,b\n1,2\n").unwrap();
        assert_eq!((records[0].get("b"), records[0].get("c")), ("2", ""));
        assert!(records[0].number("c").is_nan());
    }
}

//! The step that WGSL lacks: lines that depend on a name, and lines repeated with a number.
//!
//! `$NAME` is replaced by its value, `${A * B + 1}` by the value of an integer expression. A line `#if EXPRESSION`,
//! with `#else` and `#end`, keeps its lines where the expression is not zero; `#for i in A..B` repeats them;
//! `#block NAME` keeps them for a later `#use NAME`. Nothing else begins with `#`.

use std::iter::Peekable;
use std::str::Chars;

/// A template's text with the names of `values` filled in.
///
/// # Errors
/// A sentence that names the line.
pub(super) fn expand(source: &str, values: &[(&str, String)]) -> Result<String, String> {
    let lines: Vec<(usize, &str)> = (1..).zip(source.lines()).collect();
    let mut names: Vec<(String, String)> = values.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    let mut expansion = Expansion { blocks: Vec::new(), out: String::with_capacity(source.len() * 2) };
    expansion.lines(&lines, &mut names)?;
    Ok(expansion.out)
}

type Names = Vec<(String, String)>;

type Source<'a> = &'a [(usize, &'a str)];

struct Expansion<'a> {
    blocks: Vec<(&'a str, Source<'a>)>,
    out: String,
}

impl<'a> Expansion<'a> {
    fn lines(&mut self, lines: Source<'a>, names: &mut Names) -> Result<(), String> {
        let mut at = 0;
        while at < lines.len() {
            let (number, line) = lines[at];
            let said = |why: String| format!("line {number}: {why}");
            let Some(directive) = line.trim_start().strip_prefix('#') else {
                self.out.push_str(&substitute(line, names).map_err(said)?);
                self.out.push('\n');
                at += 1;
                continue;
            };
            if let Some(name) = directive.strip_prefix("use ") {
                let found = self.blocks.iter().find(|(own, _)| *own == name.trim());
                let lines = found.ok_or_else(|| said(format!("no block {name}")))?.1;
                self.lines(lines, names)?;
                at += 1;
                continue;
            }
            let (inner, otherwise, end) = body(lines, at).map_err(said)?;
            if let Some(condition) = directive.strip_prefix("if ") {
                let chosen = if evaluate(condition, names).map_err(said)? != 0 { inner } else { otherwise };
                self.lines(&lines[chosen], names)?;
            } else if let Some(range) = directive.strip_prefix("for ") {
                let parts = range.split_once(" in ").and_then(|(name, r)| Some((name, r.split_once("..")?)));
                let (name, (from, to)) = parts.ok_or_else(|| said(format!("not a range: {range}")))?;
                let (from, to) = (evaluate(from, names).map_err(said)?, evaluate(to, names).map_err(said)?);
                for i in from..to {
                    names.push((name.trim().to_owned(), i.to_string()));
                    self.lines(&lines[inner.clone()], names)?;
                    names.pop();
                }
            } else if let Some(name) = directive.strip_prefix("block ") {
                self.blocks.push((name.trim(), &lines[inner]));
            } else {
                return Err(said(format!("unknown directive {directive}")));
            }
            at = end + 1;
        }
        Ok(())
    }
}

type Lines = std::ops::Range<usize>;

/// The lines of the directive at `at`: its own, those after `#else`, and the place of its `#end`.
fn body(lines: &[(usize, &str)], at: usize) -> Result<(Lines, Lines, usize), String> {
    let (mut depth, mut otherwise) = (0, None);
    for (index, (_, line)) in lines.iter().enumerate().skip(at + 1) {
        let line = line.trim();
        if ["#if ", "#for ", "#block "].iter().any(|opening| line.starts_with(opening)) {
            depth += 1;
        } else if line == "#else" && depth == 0 {
            otherwise = Some(index);
        } else if line == "#end" {
            if depth == 0 {
                let first = at + 1..otherwise.unwrap_or(index);
                return Ok((first, otherwise.map_or(index, |o| o + 1)..index, index));
            }
            depth -= 1;
        }
    }
    Err("has no #end".to_owned())
}

fn substitute(line: &str, names: &Names) -> Result<String, String> {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(inner) = rest.strip_prefix('{') {
            let end = inner.find('}').ok_or("an open brace")?;
            out.push_str(&evaluate(&inner[..end], names)?.to_string());
            rest = &inner[end + 1..];
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            out.push_str(lookup(&rest[..end], names)?);
            rest = &rest[end..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup<'a>(name: &str, names: &'a Names) -> Result<&'a str, String> {
    let found = names.iter().rev().find(|(own, _)| own == name);
    found.map(|(_, value)| value.as_str()).ok_or_else(|| format!("no value for {name}"))
}

/// An integer expression of numbers, names, `+ - * / %`, comparisons, `&& ||` and parentheses.
fn evaluate(text: &str, names: &Names) -> Result<i64, String> {
    let mut chars = text.chars().peekable();
    let value = binary(&mut chars, names, 0)?;
    match chars.next() {
        None => Ok(value),
        Some(left) => Err(format!("{text}: unexpected {left}")),
    }
}

const OPERATORS: [&[&str]; 5] =
    [&["||"], &["&&"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

fn binary(chars: &mut Peekable<Chars<'_>>, names: &Names, level: usize) -> Result<i64, String> {
    if level == OPERATORS.len() {
        return atom(chars, names);
    }
    let mut left = binary(chars, names, level + 1)?;
    loop {
        skip_spaces(chars);
        let ahead: String = chars.clone().take(2).collect();
        let Some(operator) = OPERATORS[level].iter().find(|o| ahead.starts_with(**o)) else {
            return Ok(left);
        };
        for _ in operator.chars() {
            chars.next();
        }
        let right = binary(chars, names, level + 1)?;
        left = match *operator {
            "||" => i64::from(left != 0 || right != 0),
            "&&" => i64::from(left != 0 && right != 0),
            "==" => i64::from(left == right),
            "!=" => i64::from(left != right),
            "<=" => i64::from(left <= right),
            ">=" => i64::from(left >= right),
            "<" => i64::from(left < right),
            ">" => i64::from(left > right),
            "+" => left + right,
            "-" => left - right,
            "*" => left * right,
            _ if right == 0 => return Err("division by zero".to_owned()),
            "/" => left / right,
            _ => left % right,
        };
    }
}

fn atom(chars: &mut Peekable<Chars<'_>>, names: &Names) -> Result<i64, String> {
    skip_spaces(chars);
    if chars.next_if_eq(&'(').is_some() {
        let value = binary(chars, names, 0)?;
        skip_spaces(chars);
        return chars.next_if_eq(&')').map(|_| value).ok_or_else(|| "an open parenthesis".to_owned());
    }
    let mut word = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        word.push(c);
    }
    if word.starts_with(|c: char| c.is_ascii_digit()) {
        return word.parse().map_err(|_| format!("not a number: {word}"));
    }
    let value = lookup(&word, names)?;
    // A name that is not a number stands for its being set.
    Ok(value.parse().unwrap_or(i64::from(!value.is_empty())))
}

fn skip_spaces(chars: &mut Peekable<Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}

/// What a kernel takes, read off its text.
pub(super) struct Interface {
    /// Bindings of group 0, and whether each is for reading only.
    pub bindings: Vec<(u32, bool)>,
    /// Bytes of immediate data: four for each `u32`, `i32` or `f32` of `struct Args`.
    pub immediates: u32,
}

/// Reads the interface of an expanded kernel, which declares each binding on a line and each argument on its own.
pub(super) fn interface(text: &str) -> Interface {
    let mut interface = Interface { bindings: Vec::new(), immediates: 0 };
    let mut in_args = false;
    for line in text.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once("@binding(") {
            let number: String = rest.chars().take_while(char::is_ascii_digit).collect();
            interface.bindings.push((number.parse().unwrap_or(0), !line.contains("read_write")));
        }
        if line.starts_with("struct Args") {
            in_args = true;
        } else if in_args && line.starts_with('}') {
            in_args = false;
        } else if in_args && line.contains(':') {
            interface.immediates += 4;
        }
    }
    interface
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_repeated_and_filled_in() {
        let source =
            "#for i in 0..N\n#if i % 2 == 0 && F\na$i = ${i * (N + 1)}u;\n#else\nb$i\n#end\n#end\nend";
        let text = expand(source, &[("N", "3".into()), ("F", "yes".into())]).unwrap();
        assert_eq!(text, "a0 = 0u;\nb1\na2 = 8u;\nend\n");
    }

    #[test]
    fn a_block_is_filled_in_where_it_is_used() {
        let source = "#block add\nx += $i;\n#end\n#for i in 0..2\n#use add\n#end";
        assert_eq!(expand(source, &[]).unwrap(), "x += 0;\nx += 1;\n");
    }

    #[test]
    fn what_does_not_parse_names_its_line() {
        for (source, line) in
            [("a\n$X", 2), ("#if 1\nx", 1), ("#for i 0..2\n#end", 1), ("${1 / 0}", 1), ("#use x", 1)]
        {
            let why = expand(source, &[]).unwrap_err();
            assert!(why.starts_with(&format!("line {line}:")), "{why}");
        }
    }

    #[test]
    fn an_interface_is_its_bindings_and_arguments() {
        let text = "struct Args {\n a: u32,\n b: f32,\n}\nvar<immediate> args: Args;\n\
                    @group(0) @binding(0) var<storage, read> x: array<f32>;\n\
                    @group(0) @binding(1) var<storage, read_write> y: array<f32>;";
        let interface = interface(text);
        assert_eq!((interface.bindings, interface.immediates), (vec![(0, true), (1, false)], 8));
    }
}

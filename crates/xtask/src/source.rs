//! Enough of Rust's surface to tell code from comments and literals.

/// Lines of a file twice: as they are, and with the contents of comments, strings and character literals blanked.
pub(crate) struct Source {
    /// As written.
    pub(crate) lines: Vec<String>,
    /// The code alone.
    pub(crate) code: Vec<String>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        let own = |text: &str| text.lines().map(str::to_owned).collect();
        Self { lines: own(text), code: own(&blank(text)) }
    }
}

/// Blanks comments and literals; line breaks stay.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let end = literal_end(&chars, at);
        if end > at {
            out.extend(chars[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        } else {
            out.push(chars[at]);
            at += 1;
        }
    }
    out
}

/// Where the comment or literal that starts at `at` ends; `at` itself if none does.
fn literal_end(chars: &[char], at: usize) -> usize {
    let next = |offset: usize| chars.get(at + offset).copied().unwrap_or('\0');
    let after_name = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
    match chars[at] {
        '/' if next(1) == '/' => position(chars, at, |c| c == '\n'),
        '/' if next(1) == '*' => block_comment_end(chars, at),
        '"' => string_end(chars, at + 1),
        'r' if !after_name && (next(1) == '"' || next(1) == '#') => raw_string_end(chars, at),
        '\'' if next(1) == '\\' => position(chars, at + 3, |c| c == '\'') + 1,
        '\'' if next(2) == '\'' => at + 3,
        _ => at,
    }
    .min(chars.len())
}

fn position(chars: &[char], from: usize, is: impl Fn(char) -> bool) -> usize {
    (from..chars.len()).find(|&at| is(chars[at])).unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut at) = (0, start);
    while at + 1 < chars.len() {
        match (chars[at], chars[at + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], mut at: usize) -> usize {
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The end of `r"..."` or `r#"..."#`; `start` for a raw identifier.
fn raw_string_end(chars: &[char], start: usize) -> usize {
    let quote = position(chars, start + 1, |c| c != '#');
    if chars.get(quote) != Some(&'"') {
        return start;
    }
    let hashes = quote - start - 1;
    let closes = |at: &usize| {
        chars[*at] == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').take(hashes).count() == hashes
    };
    (quote + 1..chars.len()).find(closes).map_or(chars.len(), |at| at + 1 + hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_is_not() {
        for (text, want) in [
            ("a // b", "a     "),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"un\\\"safe\");", "f(          );"),
            ("r#\"a\"b\"# + c", "         + c"),
            ("'{' '\\n' 'a", "         'a"),
            ("for r in r", "for r in r"),
            ("x: &'static str", "x: &'static str"),
        ] {
            let got = blank(text);
            assert_eq!(got.trim_end(), want.trim_end(), "{text}");
            assert_eq!(got.chars().count(), text.chars().count(), "{text}");
        }
    }

    #[test]
    fn line_numbers_survive() {
        let source = Source::new("a\n/* b\nc */ d\n\"e\nf\"\ng");
        assert_eq!(source.code.len(), 6);
        assert_eq!(source.code[2].trim(), "d");
        assert_eq!(source.code[5], "g");
    }
}

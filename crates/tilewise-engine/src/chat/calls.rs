//! Tool calls in a text, as Qwen3 writes them: `<tool_call>`, an object with `name` and `arguments`, `</tool_call>`.
//!
//! The router's own parsers are not used: they bring a number library under the LGPL.

use std::ops::Range;

use super::json::{Follower, Step, is_space};
use super::output::Piece;
use super::reasoning::certain;

/// The router's name for this form.
pub const SYNTAX: &str = "qwen";

pub(crate) const OPEN: &str = "<tool_call>";
pub(crate) const CLOSE: &str = "</tool_call>";

/// The next part of a call of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallPart {
    /// The function's, with the first part of each call.
    pub name: Option<String>,
    /// More of its arguments: JSON as text, as the model wrote it.
    pub arguments: String,
}

/// Takes calls out of a text, piece by piece.
///
/// A text is a call from the first byte on of the arguments of a function that there is; they are passed on as they come.
/// Before that, nothing of it is passed on, and what does not become a call stays in the text, tags and all. A call that
/// breaks off keeps the arguments that it had, and what follows is text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallReader {
    /// Functions that there are.
    names: Vec<String>,
    /// Whether a text has one call at most: what follows the first is dropped.
    one_call: bool,
    /// The end of the text so far that may become a tag.
    held: String,
    /// What stands behind a tag that is open.
    written: Option<Written>,
    /// Whether a call was just taken: line breaks behind it are no part of the text.
    is_after_call: bool,
    /// Whether the arguments of all calls so far are whole; `None` where there are no calls.
    are_whole: Option<bool>,
}

/// What stands behind an open tag so far.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Written {
    text: String,
    /// How much of it was read.
    read: usize,
    place: Place,
    /// The key or the value that is being read, from where on.
    value: Follower,
    start: usize,
    key: String,
    name: Option<String>,
    arguments: Arguments,
    /// Whether the name was passed on.
    is_call: bool,
}

/// Where the object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Start,
    KeyOrEnd,
    Key,
    InKey,
    Colon,
    Value,
    InValue,
    CommaOrEnd,
    /// Behind the object and so many bytes of the tag.
    Close(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Arguments {
    #[default]
    None,
    /// An object, which is passed on as it comes: what is still to be, and whether its end is known.
    Object { rest: Range<usize>, is_whole: bool },
    /// Anything else, which is passed on at once.
    Other(String),
}

/// What a text behind an open tag turns out to be.
enum Outcome {
    /// More has to come.
    Open,
    /// The tag is closed.
    Closed,
    /// The next byte is not what a call may have there.
    Wrong,
}

impl CallReader {
    pub(super) fn new(names: Vec<String>, one_call: bool) -> Self {
        Self { names, one_call, held: String::new(), written: None, is_after_call: false, are_whole: None }
    }

    /// The text that is certain once `piece` has come and what is new of calls, in their order.
    pub(super) fn push(&mut self, piece: &str) -> Vec<Piece> {
        self.held.push_str(piece);
        let mut pieces = Vec::new();
        loop {
            if self.is_over() {
                self.held.clear();
                return pieces;
            }
            if let Some(mut written) = self.written.take() {
                written.text.push_str(&std::mem::take(&mut self.held));
                let outcome = written.read(&self.names);
                let is_closed = matches!(outcome, Outcome::Closed);
                pieces.extend(written.part(is_closed).map(Piece::Call));
                if matches!(outcome, Outcome::Open) {
                    self.written = Some(written);
                    return pieces;
                }
                self.held = written.text.split_off(written.read);
                self.leave(&written, is_closed, &mut pieces);
            } else if let Some(start) = self.held.find(OPEN) {
                self.pass_on(start, &mut pieces);
                self.held.drain(..OPEN.len());
                self.written = Some(Written::default());
            } else {
                let certain = certain(&self.held, OPEN);
                self.pass_on(certain, &mut pieces);
                return pieces;
            }
        }
    }

    /// The text that was held back, when no more comes.
    pub(super) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if let Some(written) = self.written.take() {
            self.leave(&written, false, &mut pieces);
        }
        self.pass_on(self.held.len(), &mut pieces);
        pieces
    }

    /// Whether there were calls, and all of them whole.
    pub(super) fn has_calls(&self) -> bool {
        self.are_whole == Some(true)
    }

    /// Whether the only call that may be made was made.
    pub(super) fn is_over(&self) -> bool {
        self.one_call && self.has_calls()
    }

    /// Goes on behind what was written, which stays in the text if it is no call.
    fn leave(&mut self, written: &Written, is_closed: bool, pieces: &mut Vec<Piece>) {
        self.is_after_call = is_closed && written.is_call;
        if written.is_call {
            let is_whole = !matches!(written.arguments, Arguments::Object { is_whole: false, .. });
            self.are_whole = Some(self.are_whole.unwrap_or(true) && is_whole);
        } else {
            pieces.push(Piece::Words(format!("{OPEN}{}", written.text)));
        }
    }

    /// Moves so many bytes of what is held to the text.
    fn pass_on(&mut self, bytes: usize, pieces: &mut Vec<Piece>) {
        let rest = self.held.split_off(bytes);
        let passed = std::mem::replace(&mut self.held, rest);
        let passed = if self.is_after_call { passed.trim_start_matches('\n') } else { &passed };
        self.is_after_call &= passed.is_empty();
        if !passed.is_empty() {
            pieces.push(Piece::Words(passed.to_owned()));
        }
    }
}

impl Written {
    /// Reads on, as far as it is a call.
    fn read(&mut self, names: &[String]) -> Outcome {
        while let Some(&byte) = self.text.as_bytes().get(self.read) {
            if self.take(byte, names).is_none() {
                return Outcome::Wrong;
            }
            self.read += 1;
            if self.place == Place::Close(CLOSE.len()) {
                return Outcome::Closed;
            }
        }
        Outcome::Open
    }

    /// Takes a byte; `None` for one that no call has here.
    fn take(&mut self, byte: u8, names: &[String]) -> Option<()> {
        self.place = match (self.place, byte) {
            (Place::InKey, _) => match self.value.push(byte) {
                Step::Inside => Place::InKey,
                Step::Last => {
                    self.key = serde_json::from_str(&self.text[self.start..=self.read]).ok()?;
                    Place::Colon
                }
                Step::Behind | Step::Wrong => return None,
            },
            (Place::InValue, _) => match self.value.push(byte) {
                Step::Inside => Place::InValue,
                Step::Last => {
                    self.set(self.read + 1, names)?;
                    Place::CommaOrEnd
                }
                Step::Behind => {
                    self.set(self.read, names)?;
                    self.place = Place::CommaOrEnd;
                    return self.take(byte, names);
                }
                Step::Wrong => return None,
            },
            (Place::Close(0), space) if is_space(space) => Place::Close(0),
            (Place::Close(at), _) => (CLOSE.as_bytes()[at] == byte).then_some(Place::Close(at + 1))?,
            (place, space) if is_space(space) => place,
            (Place::Start, b'{') => Place::KeyOrEnd,
            (Place::KeyOrEnd | Place::Key, b'"') => {
                self.begin(byte)?;
                Place::InKey
            }
            (Place::Colon, b':') => Place::Value,
            (Place::Value, _) => {
                self.begin(byte)?;
                self.begin_arguments(byte)?;
                Place::InValue
            }
            (Place::CommaOrEnd, b',') => Place::Key,
            (Place::KeyOrEnd | Place::CommaOrEnd, b'}') => Place::Close(0),
            _ => return None,
        };
        Some(())
    }

    /// Begins a key or a value.
    fn begin(&mut self, byte: u8) -> Option<()> {
        (self.value, self.start) = (Follower::default(), self.read);
        (self.value.push(byte) == Step::Inside).then_some(())
    }

    /// Arguments are passed on from here, if the value is theirs; a call has them once.
    fn begin_arguments(&mut self, byte: u8) -> Option<()> {
        if self.key != "arguments" {
            return Some(());
        }
        if self.arguments != Arguments::None {
            return None;
        }
        if byte == b'{' {
            self.arguments = Arguments::Object { rest: self.read..self.read, is_whole: false };
        }
        Some(())
    }

    /// Takes over the value that ends before `end`; `None` for one that makes it no call.
    fn set(&mut self, end: usize, names: &[String]) -> Option<()> {
        let value = &self.text[self.start..end];
        match (self.key.as_str(), &mut self.arguments) {
            ("name", _) => {
                let name: String = serde_json::from_str(value).ok()?;
                if self.name.is_some() || !names.contains(&name) {
                    return None;
                }
                self.name = Some(name);
            }
            ("arguments", Arguments::Object { rest, is_whole }) => (rest.end, *is_whole) = (end, true),
            ("arguments", arguments) => {
                *arguments = Arguments::Other(match value {
                    "null" => "{}".to_owned(),
                    text if text.starts_with('"') => serde_json::from_str(text).ok()?,
                    other => other.to_owned(),
                });
            }
            _ => {}
        }
        Some(())
    }

    /// What is new of the call, once it is one.
    fn part(&mut self, is_closed: bool) -> Option<CallPart> {
        let name = self.name.as_ref()?;
        let arguments = match &mut self.arguments {
            Arguments::Object { rest, is_whole } => {
                if !*is_whole {
                    rest.end = self.read;
                }
                let new = self.text[rest.clone()].to_owned();
                rest.start = rest.end;
                new
            }
            Arguments::Other(text) => std::mem::take(text),
            Arguments::None if is_closed => "{}".to_owned(),
            Arguments::None => return None,
        };
        let is_first = !std::mem::replace(&mut self.is_call, true);
        (is_first || !arguments.is_empty())
            .then(|| CallPart { name: is_first.then(|| name.clone()), arguments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name and the arguments of each call.
    type Calls = Vec<(String, String)>;

    fn reader() -> CallReader {
        CallReader::new(vec!["f".to_owned(), "ü".to_owned()], false)
    }

    /// The words of pieces, and what is new of calls.
    fn sorted(pieces: Vec<Piece>) -> (String, Vec<CallPart>) {
        let (mut words, mut parts) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Words(more) => words.push_str(&more),
                Piece::Call(part) => parts.push(part),
                Piece::Thought(thought) => panic!("{thought} is none"),
            }
        }
        (words, parts)
    }

    fn add(calls: &mut Calls, parts: Vec<CallPart>) {
        for part in parts {
            match part.name {
                Some(name) => calls.push((name, part.arguments)),
                None => calls.last_mut().expect("a call begins with its name").1.push_str(&part.arguments),
            }
        }
    }

    const ONE: &str =
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"ü</\"}}\n</tool_call>";
    const ARGUMENTS: &str = "{\"b\": 1, \"a\": \"ü</\"}";

    /// A text, what of it is no call, the calls, and whether there are any and all are whole.
    type Case = (String, &'static str, Vec<(&'static str, &'static str)>, bool);

    fn cases() -> Vec<Case> {
        let case = |text: &str, rest, calls, is_whole| (text.to_owned(), rest, calls, is_whole);
        vec![
            case("no call < at <tool all", "no call < at <tool all", vec![], false),
            case(ONE, "", vec![("f", ARGUMENTS)], true),
            case(&format!("say {ONE}\n{ONE} end"), "say  end", vec![("f", ARGUMENTS); 2], true),
            // Arguments in any place and of any kind.
            case(
                "<tool_call>{\"id\":[1,{}],\"arguments\":{\"a\":[]},\"name\":\"\\u00fc\"}</tool_call>",
                "",
                vec![("ü", "{\"a\":[]}")],
                true,
            ),
            case("<tool_call>{\"name\":\"f\"}</tool_call>", "", vec![("f", "{}")], true),
            case("<tool_call>{\"name\":\"f\",\"arguments\":null}</tool_call>", "", vec![("f", "{}")], true),
            case("<tool_call>{\"name\":\"f\",\"arguments\":-1}</tool_call>", "", vec![("f", "-1")], true),
            case(
                "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":\\\"\\u00e4\\\"}\"}</tool_call>",
                "",
                vec![("f", "{\"a\":\"ä\"}")],
                true,
            ),
            // A tag in a string is a part of it.
            case(
                "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"</tool_call>\"}}</tool_call>",
                "",
                vec![("f", "{\"a\":\"</tool_call>\"}")],
                true,
            ),
            // What is no call stays as it is.
            case(
                "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
                "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>",
                vec![],
                false,
            ),
            case("<tool_call>nonsense</tool_call>x", "<tool_call>nonsense</tool_call>x", vec![], false),
            case(
                "<tool_call>{\"arguments\":{\"a\":1},\"name\":3}",
                "<tool_call>{\"arguments\":{\"a\":1},\"name\":3}",
                vec![],
                false,
            ),
            case("<tool_call>{\"name\":\"f\"", "<tool_call>{\"name\":\"f\"", vec![], false),
            case("<tool_call>{\"name\":\"f\"}x", "<tool_call>{\"name\":\"f\"}x", vec![], false),
            case("x<tool_cal", "x<tool_cal", vec![], false),
            case(&format!("<tool_call>{ONE}"), "<tool_call>", vec![("f", ARGUMENTS)], true),
            // What breaks off keeps what it had.
            case("<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":", "", vec![("f", "{\"a\":")], false),
            case("<tool_call>{\"name\":\"f\",\"arguments\":{}}", "", vec![("f", "{}")], true),
            case("<tool_call>{\"name\":\"f\",\"arguments\":{a}} x", "a}} x", vec![("f", "{")], false),
            case(
                "<tool_call>{\"name\":\"f\",\"arguments\":{},\"arguments\":{}}",
                "{}}",
                vec![("f", "{}")],
                true,
            ),
        ]
    }

    #[test]
    fn calls_are_taken_out_and_the_rest_stays() {
        for (text, rest, want, is_whole) in cases() {
            let (mut reader, mut calls) = (reader(), Calls::new());
            let (said, parts) = sorted(reader.push(&text));
            add(&mut calls, parts);
            assert_eq!(said + &sorted(reader.finish()).0, rest, "{text}");
            let calls: Vec<_> = calls.iter().map(|(name, part)| (name.as_str(), part.as_str())).collect();
            assert_eq!((calls, reader.has_calls()), (want, is_whole), "{text}");
        }
    }

    /// Cutting a text into two pieces changes neither what a reader returned nor its state. By induction, the same holds for
    /// any number of pieces.
    #[test]
    fn no_way_to_cut_a_text_into_pieces_changes_what_is_read() {
        for (text, ..) in cases() {
            let ends: Vec<usize> = (0..=text.len()).filter(|&end| text.is_char_boundary(end)).collect();
            let read = |pieces: &[&str]| {
                let (mut reader, mut said, mut calls) = (reader(), String::new(), Calls::new());
                for piece in pieces {
                    let (more, parts) = sorted(reader.push(piece));
                    said.push_str(&more);
                    add(&mut calls, parts);
                }
                (reader, said, calls)
            };
            for &end in &ends {
                let whole = read(&[&text[..end]]);
                for &cut in ends.iter().filter(|&&cut| cut <= end) {
                    assert_eq!(read(&[&text[..cut], &text[cut..end]]), whole, "{text} at {cut} of {end}");
                }
            }
        }
    }

    #[test]
    fn arguments_are_passed_on_with_each_byte_once_they_have_begun() {
        let (mut reader, begin) = (reader(), ONE.find(ARGUMENTS).unwrap());
        for (at, piece) in ONE.char_indices().map(|(at, c)| (at, c.to_string())) {
            let (said, parts) = sorted(reader.push(&piece));
            assert_eq!(said, "");
            let is_argument = (begin..begin + ARGUMENTS.len()).contains(&at);
            let name = (at == begin).then(|| "f".to_owned());
            let want = is_argument.then(|| CallPart { name, arguments: piece.clone() });
            assert_eq!(parts, want.into_iter().collect::<Vec<_>>(), "{piece:?} at {at}");
        }
    }

    #[test]
    fn one_call_is_the_end_where_only_one_may_be_made() {
        let text = format!("say {ONE}\n{ONE} end");
        for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
            let (mut reader, mut calls) = (CallReader::new(vec!["f".to_owned()], true), Calls::new());
            let mut said = String::new();
            for piece in [&text[..cut], &text[cut..]] {
                let (more, parts) = sorted(reader.push(piece));
                said.push_str(&more);
                add(&mut calls, parts);
            }
            said.push_str(&sorted(reader.finish()).0);
            assert_eq!((said.as_str(), calls.len(), reader.is_over()), ("say ", 1, true), "cut at {cut}");
        }
    }
}

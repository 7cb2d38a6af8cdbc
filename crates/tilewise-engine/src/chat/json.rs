//! JSON that is followed byte by byte, as it comes.

/// Arrays and objects inside each other, as many as those who read JSON take.
const MAX_DEPTH: usize = 127;

/// What a byte is to a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A part of it.
    Inside,
    /// The end of it.
    Last,
    /// No part of it: the value, a number, ended before.
    Behind,
    /// No part of any value that begins as this one does.
    Wrong,
}

/// Follows a value from its first byte. What it took is the beginning of some JSON at any time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Follower {
    place: Place,
    /// What the place is in, from the outside.
    open: Vec<Container>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Place {
    #[default]
    Value,
    /// At the begin of an array.
    ValueOrEnd,
    /// At the begin of an object.
    KeyOrEnd,
    Key,
    Colon,
    /// Behind a value in an array or an object.
    CommaOrEnd,
    Text {
        is_key: bool,
    },
    Escape {
        is_key: bool,
    },
    /// In an escape by number, of which so many digits are left.
    Digits {
        left: u8,
        is_key: bool,
    },
    /// In a word, of which this is left.
    Word(&'static [u8]),
    Number(Number),
    Over,
}

/// Where a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, b'0') => Some(Self::Zero),
            (Self::Minus, b'1'..=b'9') | (Self::Whole, b'0'..=b'9') => Some(Self::Whole),
            (Self::Zero | Self::Whole, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') => Some(Self::Exponent),
            (Self::Exponent, b'+' | b'-') => Some(Self::ExponentSign),
            (Self::Exponent | Self::ExponentSign | Self::ExponentDigits, b'0'..=b'9') => {
                Some(Self::ExponentDigits)
            }
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::ExponentDigits)
    }
}

/// Whether JSON may have this byte between any two of its parts.
pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl Follower {
    /// Takes the next byte. None may follow one that was not [`Step::Inside`].
    pub(super) fn push(&mut self, byte: u8) -> Step {
        match self.place {
            Place::Text { is_key } => return self.text(byte, is_key),
            Place::Escape { .. } | Place::Digits { .. } => return self.escape(byte),
            Place::Word(rest) => return self.word(byte, rest),
            Place::Number(number) => match number.next(byte) {
                Some(next) => return self.go(Place::Number(next)),
                None if !number.may_end() => return Step::Wrong,
                None if self.open.is_empty() => return Step::Behind,
                None => self.place = Place::CommaOrEnd,
            },
            _ => {}
        }
        match (self.place, byte) {
            (Place::Over, _) => Step::Wrong,
            (_, space) if is_space(space) => Step::Inside,
            (Place::KeyOrEnd | Place::Key, b'"') => self.go(Place::Text { is_key: true }),
            (Place::Colon, b':') => self.go(Place::Value),
            (Place::CommaOrEnd, b',') => match self.open.last() {
                Some(Container::Object) => self.go(Place::Key),
                _ => self.go(Place::Value),
            },
            (Place::ValueOrEnd | Place::CommaOrEnd, b']') => self.close(Container::Array),
            (Place::KeyOrEnd | Place::CommaOrEnd, b'}') => self.close(Container::Object),
            (Place::Value | Place::ValueOrEnd, _) => self.begin(byte),
            _ => Step::Wrong,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::Inside
    }

    /// Takes the first byte of a value.
    fn begin(&mut self, byte: u8) -> Step {
        match byte {
            b'"' => self.go(Place::Text { is_key: false }),
            b'-' => self.go(Place::Number(Number::Minus)),
            b'0' => self.go(Place::Number(Number::Zero)),
            b'1'..=b'9' => self.go(Place::Number(Number::Whole)),
            b't' => self.go(Place::Word(b"rue")),
            b'f' => self.go(Place::Word(b"alse")),
            b'n' => self.go(Place::Word(b"ull")),
            b'[' => self.open(Container::Array, Place::ValueOrEnd),
            b'{' => self.open(Container::Object, Place::KeyOrEnd),
            _ => Step::Wrong,
        }
    }

    fn open(&mut self, container: Container, place: Place) -> Step {
        if self.open.len() == MAX_DEPTH {
            return Step::Wrong;
        }
        self.open.push(container);
        self.go(place)
    }

    fn close(&mut self, container: Container) -> Step {
        if self.open.last() != Some(&container) {
            return Step::Wrong;
        }
        self.open.pop();
        self.end()
    }

    /// A value has ended.
    fn end(&mut self) -> Step {
        if self.open.is_empty() {
            self.place = Place::Over;
            return Step::Last;
        }
        self.go(Place::CommaOrEnd)
    }

    fn text(&mut self, byte: u8, is_key: bool) -> Step {
        match byte {
            b'"' if is_key => self.go(Place::Colon),
            b'"' => self.end(),
            b'\\' => self.go(Place::Escape { is_key }),
            0..0x20 => Step::Wrong,
            _ => Step::Inside,
        }
    }

    fn escape(&mut self, byte: u8) -> Step {
        match (self.place, byte) {
            (Place::Escape { is_key }, b'u') => self.go(Place::Digits { left: 4, is_key }),
            (Place::Escape { is_key }, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.go(Place::Text { is_key })
            }
            (Place::Digits { left: 1, is_key }, digit) if digit.is_ascii_hexdigit() => {
                self.go(Place::Text { is_key })
            }
            (Place::Digits { left, is_key }, digit) if digit.is_ascii_hexdigit() => {
                self.go(Place::Digits { left: left - 1, is_key })
            }
            _ => Step::Wrong,
        }
    }

    fn word(&mut self, byte: u8, rest: &'static [u8]) -> Step {
        match rest {
            [next] if *next == byte => self.end(),
            [next, rest @ ..] if *next == byte => self.go(Place::Word(rest)),
            _ => Step::Wrong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes are taken before a step that is not [`Step::Inside`], and that step.
    fn follow(text: &str) -> (usize, Option<Step>) {
        let mut follower = Follower::default();
        let mut steps = text.bytes().map(|byte| follower.push(byte)).enumerate();
        let stop = steps.find(|(_, step)| *step != Step::Inside);
        stop.map_or((text.len(), None), |(at, step)| (at, Some(step)))
    }

    #[test]
    fn a_value_is_followed_to_its_last_byte_and_no_further() {
        for value in [
            r#"{"a": [1, -0.5e+3, {"b": {}}, []], "ü": "\"\\\u00e4 }]", "c": null}"#,
            "[true,false,null,0,10.25E-1]",
            "\"\"",
            "{ }",
            "null",
        ] {
            assert_eq!(follow(&format!("{value}}}")), (value.len() - 1, Some(Step::Last)), "{value}");
        }
        for number in ["0", "-1", "12.5", "1e9"] {
            assert_eq!(follow(&format!("{number}}}")), (number.len(), Some(Step::Behind)), "{number}");
        }
    }

    #[test]
    fn what_no_json_begins_with_is_wrong_at_its_first_such_byte() {
        for (text, wrong) in [
            ("01", 1),
            ("-a", 1),
            ("1.}", 2),
            ("1e+]", 3),
            ("[1,]", 3),
            ("[1}", 2),
            ("{]", 1),
            ("{1", 1),
            (r#"{"a" 1"#, 5),
            (r#"{"a":1,}"#, 7),
            (r#"{"a":}"#, 5),
            (r#""\x"#, 2),
            (r#""\u12g"#, 5),
            ("\"a\n", 2),
            ("nul1", 3),
            ("<", 0),
        ] {
            let (at, step) = follow(text);
            let is_wrong = step == Some(Step::Wrong) || text == "01" && step == Some(Step::Behind);
            assert!(at == wrong && is_wrong, "{text:?}: {step:?} at {at}");
        }
        assert_eq!(follow(&"[".repeat(1000)), (MAX_DEPTH, Some(Step::Wrong)));
    }

    #[test]
    fn every_beginning_that_is_taken_can_be_completed() {
        let value = r#"{"a": [1, -0.5e+3, {"b": true}], "c": "x\n\""}"#;
        for end in 1..value.len() {
            for next in 0..=255_u8 {
                let mut follower = Follower::default();
                value.as_bytes()[..end]
                    .iter()
                    .for_each(|&byte| assert_eq!(follower.push(byte), Step::Inside));
                let text = [&value.as_bytes()[..end], &[next]].concat();
                let is_taken = follower.push(next) != Step::Wrong;
                // The reader of the workspace says whether more could follow: then it is the end that it complains of.
                let read = serde_json::from_slice::<serde_json::Value>(&text);
                let can_go_on = read.as_ref().map_or_else(serde_json::Error::is_eof, |_| true);
                if next.is_ascii() {
                    assert_eq!(is_taken, can_go_on, "{:?}", String::from_utf8_lossy(&text));
                }
            }
        }
    }
}

//! What a model thinks before it answers, between tags.

use serde_json::{Map, Value};

/// How a model marks its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningTags {
    /// The name of this form, as SGLang's `--reasoning-parser` has it.
    pub name: &'static str,
    /// Before the reasoning.
    pub open: &'static str,
    /// Behind it.
    pub close: &'static str,
    /// Whether the model reasons from its first token on, without the tag that opens.
    pub always: bool,
}

const fn tags(name: &'static str, open: &'static str, close: &'static str, always: bool) -> ReasoningTags {
    ReasoningTags { name, open, close, always }
}

/// The forms that are known.
pub const REASONING: [ReasoningTags; 14] = [
    tags("qwen3", "<think>", "</think>", false),
    tags("qwen3_thinking", "<think>", "</think>", true),
    tags("deepseek_r1", "<think>", "</think>", true),
    tags("deepseek_v31", "<think>", "</think>", false),
    tags("deepseek_v4", "<think>", "</think>", false),
    tags("glm45", "<think>", "</think>", false),
    tags("kimi", "◁think▷", "◁/think▷", false),
    tags("kimi_k25", "<think>", "</think>", false),
    tags("kimi_thinking", "<think>", "</think>", true),
    tags("minimax", "<think>", "</think>", true),
    tags("minimax_m3", "<mm:think>", "</mm:think>", false),
    tags("nano_v3", "<think>", "</think>", false),
    tags("step3", "<think>", "</think>", true),
    tags("cohere_cmd", "<|START_THINKING|>", "<|END_THINKING|>", false),
];

/// What a request says of reasoning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thinking {
    /// Whether the model thinks; `None` leaves it to the template.
    pub enabled: Option<bool>,
    /// How much, in the template's own words: `low`, `medium`, `high`.
    pub effort: Option<String>,
}

impl Thinking {
    /// What `reasoning_effort` says: `none` turns thinking off, any other word turns it on and reaches the template.
    pub fn of_effort(effort: &str) -> Self {
        match effort {
            "none" => Self { enabled: Some(false), effort: None },
            effort => Self { enabled: Some(true), effort: Some(effort.to_owned()) },
        }
    }

    /// Sets the variables by which templates turn thinking on and off: Qwen's, GLM's and SmolLM's is `enable_thinking`,
    /// DeepSeek's and Granite's is `thinking`, gpt-oss's is `reasoning_effort`.
    pub fn set(&self, variables: &mut Map<String, Value>) {
        if let Some(enabled) = self.enabled {
            variables.insert("enable_thinking".to_owned(), enabled.into());
            variables.insert("thinking".to_owned(), enabled.into());
        }
        if let Some(effort) = &self.effort {
            variables.insert("reasoning_effort".to_owned(), effort.clone().into());
        }
    }
}

/// Whether variables of a template turn reasoning off.
pub(super) fn is_off(variables: &Map<String, Value>) -> bool {
    ["enable_thinking", "thinking"].iter().any(|name| variables.get(*name) == Some(&Value::Bool(false)))
}

/// Where a prompt leaves the reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reasoning {
    /// The prompt has opened it.
    IsOpen,
    /// The model may open it.
    MayOpen,
    /// The prompt has opened and closed it.
    IsClosed,
    /// The prompt ends in what is said.
    IsOver,
}

impl ReasoningTags {
    /// Where a prompt leaves the reasoning, which the template may have been told to leave out.
    pub(super) fn after(&self, prompt: &str, is_off: bool) -> Reasoning {
        let prompt = prompt.trim_end();
        if prompt.ends_with(self.open) {
            Reasoning::IsOpen
        } else if prompt.ends_with(self.close) || is_off {
            Reasoning::IsClosed
        } else if self.always {
            Reasoning::IsOpen
        } else {
            Reasoning::MayOpen
        }
    }

    /// Where a message that is continued leaves it: by the tag that comes last.
    pub(super) fn within(&self, message: &str) -> Reasoning {
        match (message.rfind(self.open), message.rfind(self.close)) {
            (Some(open), close) if close.is_none_or(|close| close < open) => Reasoning::IsOpen,
            (None, None) if message.trim().is_empty() => Reasoning::MayOpen,
            _ => Reasoning::IsOver,
        }
    }
}

/// Tells reasoning from what is said, piece by piece. Cutting a text into pieces never changes what comes out.
///
/// White space beside a tag belongs to neither side. Only the first reasoning of a text is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReasoningReader {
    tags: ReasoningTags,
    place: Place,
    /// The end of the text so far whose meaning is still open.
    held: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the tag that opens.
    Before,
    /// At the begin of the reasoning.
    Begin,
    Inside,
    /// Behind the tag that closes, before the first word.
    End,
    Behind,
}

impl ReasoningReader {
    pub(super) fn new(tags: ReasoningTags, reasoning: Reasoning) -> Self {
        let place = match reasoning {
            Reasoning::IsOpen => Place::Begin,
            Reasoning::MayOpen => Place::Before,
            Reasoning::IsClosed => Place::End,
            Reasoning::IsOver => Place::Behind,
        };
        Self { tags, place, held: String::new() }
    }

    /// Whether the text so far ends inside the reasoning.
    pub(super) fn is_inside(&self) -> bool {
        matches!(self.place, Place::Begin | Place::Inside)
    }

    /// The reasoning and the other text that are certain once `piece` has come.
    pub(super) fn push(&mut self, piece: &str) -> (String, String) {
        self.held.push_str(piece);
        let (mut reasoning, mut text) = (String::new(), String::new());
        while self.step(&mut reasoning, &mut text) {}
        (reasoning, text)
    }

    /// What was held back, when no more comes.
    pub(super) fn finish(&mut self) -> (String, String) {
        let rest = std::mem::take(&mut self.held);
        match self.is_inside() {
            true => (rest.trim_end().to_owned(), String::new()),
            false => (String::new(), rest),
        }
    }

    /// Reads on up to the next place; says whether there may be more.
    fn step(&mut self, reasoning: &mut String, text: &mut String) -> bool {
        let ReasoningTags { open, close, .. } = self.tags;
        match self.place {
            Place::Before => {
                let found = self.held.find(open);
                let end = found.unwrap_or_else(|| certain(&self.held, open));
                // White space may still turn out to stand before the tag.
                let end = self.held[..end].trim_end().len();
                text.extend(self.held.drain(..end));
                let Some(_) = found else { return false };
                self.held = self.held.trim_start()[open.len()..].to_owned();
                self.place = Place::Begin;
            }
            Place::Begin => {
                let words = self.held.trim_start();
                if let Some(rest) = words.strip_prefix(open) {
                    // The prompt had opened it, and the model did so again.
                    self.held = rest.to_owned();
                } else if open.starts_with(words) {
                    return false;
                } else {
                    self.held = words.to_owned();
                    self.place = Place::Inside;
                }
            }
            Place::Inside => {
                let found = self.held.find(close);
                let end = found.unwrap_or_else(|| certain(&self.held, close));
                let end = self.held[..end].trim_end().len();
                reasoning.extend(self.held.drain(..end));
                let Some(_) = found else { return false };
                self.held = self.held.trim_start()[close.len()..].to_owned();
                self.place = Place::End;
            }
            Place::End => {
                let words = self.held.trim_start();
                if words.is_empty() {
                    self.held.clear();
                    return false;
                }
                self.held = words.to_owned();
                self.place = Place::Behind;
            }
            Place::Behind => {
                text.push_str(&std::mem::take(&mut self.held));
                return false;
            }
        }
        true
    }
}

/// The place from which on a text may become a tag.
pub(super) fn certain(text: &str, tag: &str) -> usize {
    let mut places = text.char_indices().map(|(place, _)| place);
    places.find(|&place| tag.starts_with(&text[place..])).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the prompt left it, a text, its reasoning and the rest.
    const CASES: [(Reasoning, &str, &str, &str); 15] = [
        (Reasoning::MayOpen, "<think>one two</think>three", "one two", "three"),
        (Reasoning::MayOpen, "\n<think>\none\n two \n</think>\n\nthree \n", "one\n two", "three \n"),
        (Reasoning::MayOpen, "no < tag </think> <thin", "", "no < tag </think> <thin"),
        (Reasoning::MayOpen, "  a \n", "", "  a \n"),
        (Reasoning::MayOpen, "say <think>a</think>b<think>c</think>", "a", "sayb<think>c</think>"),
        (Reasoning::MayOpen, "<think>cut </thi", "cut </thi", ""),
        (Reasoning::IsOpen, "one</think> two", "one", "two"),
        (Reasoning::IsOpen, "\n\none < ü</think>two", "one < ü", "two"),
        (Reasoning::IsOpen, "<think>\none</think>two", "one", "two"),
        (Reasoning::IsOpen, "</think>two", "", "two"),
        (Reasoning::IsOpen, "<thimble", "<thimble", ""),
        (Reasoning::IsOpen, "one ", "one", ""),
        (Reasoning::IsClosed, "\n\n<think>two ", "", "<think>two "),
        (Reasoning::IsClosed, "", "", ""),
        (Reasoning::IsOver, " 42 <think>", "", " 42 <think>"),
    ];

    fn read(reasoning: Reasoning, pieces: &[&str]) -> (ReasoningReader, String, String) {
        let mut reader = ReasoningReader::new(REASONING[0], reasoning);
        let (mut thought, mut said) = (String::new(), String::new());
        for piece in pieces {
            let (more_thought, more_said) = reader.push(piece);
            thought.push_str(&more_thought);
            said.push_str(&more_said);
        }
        (reader, thought, said)
    }

    #[test]
    fn reasoning_is_told_from_the_rest() {
        for (place, text, thought, said) in CASES {
            let (mut reader, mut got_thought, mut got_said) = read(place, &[text]);
            let (last_thought, last_said) = reader.finish();
            got_thought.push_str(&last_thought);
            got_said.push_str(&last_said);
            assert_eq!(
                (got_thought.as_str(), got_said.as_str()),
                (thought, said),
                "{text:?} after {place:?}"
            );
        }
    }

    #[test]
    fn cutting_a_text_changes_neither_reasoning_nor_the_rest() {
        for (place, text, ..) in CASES {
            let ends: Vec<usize> = (0..=text.len()).filter(|&end| text.is_char_boundary(end)).collect();
            for &end in &ends {
                let whole = read(place, &[&text[..end]]);
                for &cut in ends.iter().filter(|&&cut| cut <= end) {
                    let pieces = read(place, &[&text[..cut], &text[cut..end]]);
                    assert_eq!(pieces, whole, "{text:?} after {place:?} at {cut} of {end}");
                }
            }
        }
    }

    #[test]
    fn a_prompt_says_where_it_leaves_the_reasoning() {
        let (free, off) = (false, true);
        let (qwen, r1) = (REASONING[0], REASONING[2]);
        assert_eq!(qwen.after("assistant\n<think>\n", free), Reasoning::IsOpen);
        assert_eq!(qwen.after("assistant\n<think>\n\n</think>\n\n", free), Reasoning::IsClosed);
        assert_eq!(qwen.after("assistant\n", free), Reasoning::MayOpen);
        assert_eq!(qwen.after("assistant\n", off), Reasoning::IsClosed);
        assert_eq!(r1.after("assistant\n", free), Reasoning::IsOpen);
        assert_eq!(r1.after("assistant\n<think>\n\n</think>\n\n", free), Reasoning::IsClosed);
        for (message, place) in [
            ("<think>so far", Reasoning::IsOpen),
            ("<think>x</think>The answer is", Reasoning::IsOver),
            ("The answer is", Reasoning::IsOver),
            ("", Reasoning::MayOpen),
        ] {
            assert_eq!(qwen.within(message), place, "{message}");
        }
        for (effort, is_off_then) in [("none", true), ("low", false)] {
            let mut variables = Map::new();
            Thinking::of_effort(effort).set(&mut variables);
            assert_eq!(is_off(&variables), is_off_then, "{variables:?}");
        }
    }
}

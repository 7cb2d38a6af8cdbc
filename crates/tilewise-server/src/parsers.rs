//! Tool calls and reasoning in a model's text.

use reasoning_parser::ReasoningParser;
use tilewise_engine::tokenizer::ChatTemplate;

use crate::calls::{self, CallPart, CallReader};
use crate::{ServerConfig, ServerError};

/// How the model writes calls and reasoning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parsers {
    /// Whether it writes calls in the one form that is known.
    pub(crate) reads_calls: bool,
    /// The router's name for the form of its reasoning.
    pub(crate) reasoning: Option<String>,
}

impl Parsers {
    /// Those that the configuration names, or those whose tags the chat template shows to the model.
    ///
    /// # Errors
    /// [`ServerError::Config`] for a name that nobody knows.
    pub(crate) fn choose(
        template: Option<&ChatTemplate>,
        config: &ServerConfig,
    ) -> Result<Self, ServerError> {
        let mentions = |words: &str| template.is_some_and(|template| template.mentions(words));
        let reads_calls = match config.tool_call_parser.as_deref() {
            Some(calls::SYNTAX) => true,
            Some(name) => {
                let why = format!("there is no tool-call parser {name:?}, only {}", calls::SYNTAX);
                return Err(ServerError::Config(why));
            }
            // Some models write XML between the same tags.
            None => mentions(calls::OPEN) && !mentions("<function="),
        };
        let suggested = || mentions("<think>").then(|| "qwen3".to_owned());
        let reasoning = config.reasoning_parser.clone().or_else(suggested);
        if let Some(name) = reasoning.as_ref().filter(|name| new_reasoning_parser(name).is_none()) {
            let known = reasoning_parser::ParserFactory::new().registry().list_parsers().join(", ");
            return Err(ServerError::Config(format!("there is no reasoning parser {name:?} among {known}")));
        }
        Ok(Self { reads_calls, reasoning })
    }

    /// A reader of one completion, which may call functions of these names. `prompt` is what it continues: it may have
    /// begun the reasoning already.
    pub(crate) fn reader(&self, names: Vec<String>, reasons: bool, prompt: &str) -> OutputReader {
        let name = self.reasoning.as_deref().filter(|_| reasons);
        let mut reasoning = name.and_then(new_reasoning_parser);
        if let Some(parser) = &mut reasoning
            && prompt.trim_end().ends_with("<think>")
        {
            parser.mark_reasoning_started();
            parser.mark_think_start_stripped();
        }
        let calls = (self.reads_calls && !names.is_empty()).then(|| CallReader::new(names));
        OutputReader { reasoning, calls }
    }
}

fn new_reasoning_parser(name: &str) -> Option<Box<dyn ReasoningParser>> {
    reasoning_parser::ParserFactory::new().registry().create_parser(name)
}

/// What a piece of text turned out to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<CallPart>,
}

/// Sorts a completion's text, piece by piece.
pub(crate) struct OutputReader {
    reasoning: Option<Box<dyn ReasoningParser>>,
    calls: Option<CallReader>,
}

impl OutputReader {
    /// What a piece adds. What a parser cannot read is text.
    pub(crate) fn push(&mut self, text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        let mut rest = text.to_owned();
        if let Some(parser) = &mut self.reasoning
            && let Ok(result) = parser.parse_reasoning_streaming_incremental(text)
        {
            (parsed.reasoning, rest) = (result.reasoning_text, result.normal_text);
        }
        self.sort(&rest, &mut parsed);
        parsed
    }

    /// What the last piece adds, and what was held back.
    pub(crate) fn finish(&mut self, text: &str) -> Parsed {
        let mut parsed = self.push(text);
        if let Some(parser) = &mut self.reasoning
            && let Ok(result) = parser.flush()
        {
            parsed.reasoning.push_str(&result.reasoning_text);
            self.sort(&result.normal_text, &mut parsed);
        }
        if let Some(reader) = &mut self.calls {
            parsed.content.push_str(&reader.finish());
        }
        parsed
    }

    /// Whether calls were found, and all of them whole.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls.as_ref().is_some_and(CallReader::has_calls)
    }

    /// Finds calls in what is no reasoning.
    fn sort(&mut self, text: &str, parsed: &mut Parsed) {
        match &mut self.calls {
            Some(reader) => {
                let (content, calls) = reader.push(text);
                parsed.content.push_str(&content);
                parsed.calls.extend(calls);
            }
            None => parsed.content.push_str(text),
        }
    }
}

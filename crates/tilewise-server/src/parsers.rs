//! Tool calls and reasoning in a model's text, by the router's parsers.

use openai_protocol::common::Tool;
use reasoning_parser::ReasoningParser;
use tilewise_engine::tokenizer::ChatTemplate;
use tool_parser::ToolParser;

use crate::{ServerConfig, ServerError};

/// How the model writes calls and reasoning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parsers {
    pub(crate) tools: Option<String>,
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
        let suggested = |name: &str, tag: &str| mentions(tag).then(|| name.to_owned());
        let tools = config
            .tool_call_parser
            .clone()
            .or_else(|| suggested("qwen_xml", "<function="))
            .or_else(|| suggested("qwen", "<tool_call>"));
        let reasoning = config.reasoning_parser.clone().or_else(|| suggested("qwen3", "<think>"));
        let parsers = Self { tools, reasoning };
        if let Some(name) = parsers.tools.as_ref().filter(|name| new_tool_parser(name).is_none()) {
            return Err(ServerError::Config(format!("there is no tool-call parser {name:?}")));
        }
        if let Some(name) = parsers.reasoning.as_ref().filter(|name| new_reasoning_parser(name).is_none()) {
            let known = reasoning_parser::ParserFactory::new().registry().list_parsers().join(", ");
            return Err(ServerError::Config(format!("there is no reasoning parser {name:?} among {known}")));
        }
        Ok(parsers)
    }

    /// Whether calls can be told from text.
    pub(crate) fn knows_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// Whether calls are JSON between tags, which a grammar can describe.
    pub(crate) fn writes_json_calls(&self) -> bool {
        self.tools.as_deref() == Some("qwen")
    }

    /// A reader of one completion. `prompt` is what it continues: it may have begun the reasoning already.
    pub(crate) fn reader(&self, tools: Vec<Tool>, reasons: bool, prompt: &str) -> OutputReader {
        let name = self.reasoning.as_deref().filter(|_| reasons);
        let mut reasoning = name.and_then(new_reasoning_parser);
        if let Some(parser) = &mut reasoning
            && prompt.trim_end().ends_with("<think>")
        {
            parser.mark_reasoning_started();
            parser.mark_think_start_stripped();
        }
        let parser = self.tools.as_deref().filter(|_| !tools.is_empty()).and_then(new_tool_parser);
        OutputReader { reasoning, tools: parser.map(|parser| (parser, tools)), calls: 0 }
    }
}

fn new_tool_parser(name: &str) -> Option<Box<dyn ToolParser>> {
    tool_parser::ParserFactory::new().registry().create_parser(name)
}

fn new_reasoning_parser(name: &str) -> Option<Box<dyn ReasoningParser>> {
    reasoning_parser::ParserFactory::new().registry().create_parser(name)
}

/// What a piece of text turned out to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parsed {
    pub(crate) content: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<CallPiece>,
}

/// A part of a tool call: its name comes first, then its arguments in pieces of JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CallPiece {
    pub(crate) index: usize,
    pub(crate) name: Option<String>,
    pub(crate) arguments: String,
}

/// Sorts a completion's text, piece by piece.
pub(crate) struct OutputReader {
    reasoning: Option<Box<dyn ReasoningParser>>,
    tools: Option<(Box<dyn ToolParser>, Vec<Tool>)>,
    calls: usize,
}

impl OutputReader {
    /// What a piece adds. What a parser cannot read is text.
    pub(crate) async fn push(&mut self, text: &str) -> Parsed {
        let mut parsed = Parsed::default();
        let mut rest = text.to_owned();
        if let Some(parser) = &mut self.reasoning
            && let Ok(result) = parser.parse_reasoning_streaming_incremental(text)
        {
            parsed.reasoning = result.reasoning_text;
            rest = result.normal_text;
        }
        self.sort(rest, &mut parsed).await;
        parsed
    }

    /// What was held back, when no more text comes.
    pub(crate) async fn finish(&mut self) -> Parsed {
        let mut parsed = Parsed::default();
        let mut rest = String::new();
        if let Some(parser) = &mut self.reasoning
            && let Ok(result) = parser.flush()
        {
            parsed.reasoning = result.reasoning_text;
            rest = result.normal_text;
        }
        self.sort(rest, &mut parsed).await;
        if let Some((parser, _)) = &mut self.tools {
            let unsent = parser.get_unstreamed_tool_args().unwrap_or_default();
            parsed.calls.extend(unsent.into_iter().map(piece));
            parsed.content.push_str(&parser.take_unstreamed_normal_text());
        }
        self.count(&parsed);
        parsed
    }

    /// Whether any call was found.
    pub(crate) fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Finds calls in what is no reasoning.
    async fn sort(&mut self, text: String, parsed: &mut Parsed) {
        match &mut self.tools {
            Some((parser, tools)) if !text.is_empty() => match parser.parse_incremental(&text, tools).await {
                Ok(result) => {
                    parsed.content = result.normal_text;
                    parsed.calls.extend(result.calls.into_iter().map(piece));
                }
                Err(_) => parsed.content = text,
            },
            _ => parsed.content = text,
        }
        self.count(parsed);
    }

    fn count(&mut self, parsed: &Parsed) {
        self.calls = parsed.calls.iter().map(|call| call.index + 1).fold(self.calls, usize::max);
    }
}

fn piece(item: tool_parser::types::ToolCallItem) -> CallPiece {
    CallPiece { index: item.tool_index, name: item.name, arguments: item.parameters }
}

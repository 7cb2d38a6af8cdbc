//! Conversations: from turns to a prompt, and from a model's text to what it said, thought and called.
//!
//! ```text
//! Conversation ─ ChatFormat::prepare ─► Prompt { text, grammar, reader } ─ tokenizer ─► GenerateRequest
//! text of a completion ─ OutputReader ─► Said { content, reasoning, calls }
//! ```

mod calls;
mod json;
mod output;
mod reasoning;
mod tools;

use serde_json::{Map, Value};

use crate::grammar::Grammar;
use crate::tokenizer::{ChatInput, ChatTemplate};
use crate::{Error, Result};
use calls::CallReader;
use reasoning::{Reasoning, ReasoningReader};

pub(crate) use calls::{CLOSE, OPEN};
pub use calls::{CallPart, SYNTAX};
pub use output::{OutputReader, Piece, Said};
pub use reasoning::{REASONING, ReasoningTags, Thinking};
pub use tools::{Function, MAX_TOOLS, ToolChoice, Tools};

/// Variables of chat templates that requests cannot set by themselves.
const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

/// How a model writes calls and reasoning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChatFormat {
    /// Whether it writes calls in the one form that is known.
    pub reads_calls: bool,
    /// How it marks its reasoning.
    pub reasoning: Option<ReasoningTags>,
}

/// A conversation to continue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// A list of objects with a `role`, and what else the template reads of them.
    pub messages: Value,
    /// Functions that may be called.
    pub tools: Tools,
    /// Further variables of the template; [`Thinking::set`] sets those of reasoning.
    pub options: Map<String, Value>,
    /// Whether the text begins inside the last message, which is the assistant's.
    pub continues: bool,
    /// What the answer has to obey; reasoning before it is free.
    pub grammar: Option<Grammar>,
    /// Whether reasoning is left in what is said.
    pub keeps_reasoning: bool,
}

/// What a conversation asks of a model.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The conversation as text, special tokens written out.
    pub text: String,
    /// What the completion has to obey.
    pub grammar: Option<Grammar>,
    /// Reads the completion.
    pub reader: OutputReader,
}

impl ChatFormat {
    /// The forms of these names, or those whose tags the chat template shows to the model.
    ///
    /// # Errors
    /// [`Error::Value`] for a name that nobody knows.
    pub fn choose(
        template: Option<&ChatTemplate>,
        calls: Option<&str>,
        reasoning: Option<&str>,
    ) -> Result<Self> {
        let mentions = |words: &str| template.is_some_and(|template| template.mentions(words));
        let reads_calls = match calls {
            Some(SYNTAX) => true,
            Some(name) => return Err(Error::value("tool-call parser", SYNTAX, format!("{name:?}"))),
            // Some models write XML between the same tags.
            None => mentions(OPEN) && !mentions("<function="),
        };
        let reasoning = match reasoning {
            None => REASONING.into_iter().find(|tags| !tags.always && mentions(tags.open)),
            Some(name) => Some(REASONING.into_iter().find(|tags| tags.name == name).ok_or_else(|| {
                let known = REASONING.map(|tags| tags.name).join(", ");
                Error::value("reasoning parser", format!("one of {known}"), format!("{name:?}"))
            })?),
        };
        Ok(Self { reads_calls, reasoning })
    }

    /// The prompt of a conversation, and how what follows it is read.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own words, [`Error::Unsupported`] for tools that the template does not
    /// show or whose calls cannot be read, [`Error::Value`] for a variable that is not the conversation's to set, or an
    /// expression where a call is required.
    pub fn prepare(&self, template: &ChatTemplate, conversation: &Conversation) -> Result<Prompt> {
        let Conversation { tools, options, grammar, .. } = conversation;
        let shows_tools = template.reads("tools") && self.reads_calls;
        if !tools.is_empty() && !shows_tools {
            return Err(Error::unsupported("tools", "the model's chat template has no tools"));
        }
        let grammar = tools.grammar(grammar.clone())?;
        let text = render(template, conversation)?;
        let continued = conversation.continues.then(|| last_words(&conversation.messages));
        let reasoning = self.reasoning.map(|tags| {
            let place = match continued {
                Some(words) => tags.within(words),
                None => tags.after(&text, reasoning::is_off(options)),
            };
            (tags, place)
        });
        let grammar = grammar.map(|grammar| match reasoning {
            Some((tags, Reasoning::IsOpen)) => after_reasoning(tags, true, grammar),
            // What obeys an expression is told by it from its first character on.
            Some((tags, Reasoning::MayOpen)) if !matches!(grammar, Grammar::Regex(_) | Grammar::Lark(_)) => {
                after_reasoning(tags, false, grammar)
            }
            _ => grammar,
        });
        let calls =
            (self.reads_calls && !tools.is_empty()).then(|| CallReader::new(tools.names(), tools.one_call()));
        let reasoning = reasoning.filter(|_| !conversation.keeps_reasoning);
        let reasoning = reasoning.map(|(tags, place)| ReasoningReader::new(tags, place));
        Ok(Prompt { text, grammar, reader: OutputReader::new(reasoning, calls) })
    }
}

fn after_reasoning(tags: ReasoningTags, is_open: bool, then: Grammar) -> Grammar {
    Grammar::AfterReasoning { tags, is_open, then: Box::new(then) }
}

/// The conversation as text.
fn render(template: &ChatTemplate, conversation: &Conversation) -> Result<String> {
    let Conversation { messages, tools, options, continues, .. } = conversation;
    if let Some(reserved) = RESERVED.iter().find(|name| options.contains_key(**name)) {
        return Err(Error::value("chat_template_kwargs", "variables of its own", format!("{reserved:?}")));
    }
    let mut messages = messages.clone();
    if *continues && let Some(words) = last_content(&mut messages) {
        words.push_str(MARK);
    }
    let input = ChatInput {
        messages,
        tools: tools.for_template(),
        options: options.clone(),
        add_generation_prompt: !continues,
    };
    let mut text = template.render(&input)?;
    if *continues {
        // What the template puts behind the message would end it.
        match text.rfind(MARK) {
            Some(end) => text.truncate(end),
            None => return Err(Error::Template("it does not show the last message as it is".to_owned())),
        }
    }
    Ok(text)
}

/// Marks where the last message ends: characters that no text should have.
const MARK: &str = "\u{f8ff}\u{e000}\u{f8ff}";

/// What the last message says.
fn last_content(messages: &mut Value) -> Option<&mut String> {
    match messages.as_array_mut()?.last_mut()?.get_mut("content")? {
        Value::String(words) => Some(words),
        _ => None,
    }
}

fn last_words(messages: &Value) -> &str {
    messages.as_array().and_then(|messages| messages.last()?.get("content")?.as_str()).unwrap_or_default()
}

//! Conversations to text, by the template that comes with a model.

mod functions;
mod source;

use std::collections::HashSet;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::special::SpecialTokens;
use crate::{Error, Result};
use source::Sources;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A conversation as a template sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatInput {
    /// A list of objects with a `role`, and what else the template reads of them.
    pub messages: Json,
    /// A list of functions that may be called.
    pub tools: Option<Json>,
    /// Further variables, such as `enable_thinking`.
    pub options: serde_json::Map<String, Json>,
    /// Whether the text ends where the assistant speaks next.
    pub add_generation_prompt: bool,
}

/// A Jinja template as Hugging Face transformers runs it.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// What it reads that is not its own; to find that, it is parsed.
    variables: HashSet<String>,
}

/// Instructions that a template may run, each of which pays for 64 bytes that it makes too: a long conversation takes
/// thousands, an endless loop or a text that doubles all of them. The text of a list that holds another several times, and
/// so on, is not counted before it is made: minijinja 3.1 cannot, so that a template is trusted as its model is.
const FUEL: u64 = 2_000_000;

const NAME: &str = "chat";
/// The template for conversations with tools, where it is another.
const WITH_TOOLS: &str = "tools";

impl ChatTemplate {
    /// The template that a `chat_template` holds: a text, or several by name as a list or an object, of which `tool_use` is
    /// for conversations with tools; `None` if it holds none.
    ///
    /// # Errors
    /// [`Error::Template`] if it cannot be parsed, or if none of several is named `default`.
    pub(super) fn new(chat_template: &Json, tokens: &SpecialTokens) -> Result<Option<Self>> {
        let Some(sources) = Sources::read(chat_template)? else { return Ok(None) };
        let mut environment = environment()?;
        let mut add = |name, text: &str| {
            environment
                .add_template_owned(name, source::without_generation_tags(text))
                .map_err(|e| sentence(&e))
        };
        add(NAME, &sources.default)?;
        if let Some(text) = &sources.with_tools {
            add(WITH_TOOLS, text)?;
        }
        for (key, token) in tokens.iter() {
            environment.add_global(key.to_owned(), token.to_owned());
        }
        let mut template = Self { environment, variables: HashSet::new() };
        template.variables = template.templates().flat_map(|one| one.undeclared_variables(false)).collect();
        Ok(Some(template))
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant speaks next.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn apply(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages = serde_json::to_value(messages).map_err(|e| Error::Template(e.to_string()))?;
        self.render(&ChatInput { messages, add_generation_prompt, ..ChatInput::default() })
    }

    /// The text of a conversation that has more than roles and words.
    ///
    /// # Errors
    /// [`Error::Template`] with the template's own words, or if it runs too long.
    pub fn render(&self, input: &ChatInput) -> Result<String> {
        let ChatInput { messages, tools, options, add_generation_prompt } = input;
        let mut variables = options.clone();
        variables.insert("messages".to_owned(), messages.clone());
        variables.insert("add_generation_prompt".to_owned(), Json::Bool(*add_generation_prompt));
        // Templates ask whether these are none: they are always there, as in transformers.
        for key in ["tools", "documents"] {
            variables.entry(key).or_insert(Json::Null);
        }
        if let Some(tools) = tools {
            variables.insert("tools".to_owned(), tools.clone());
        }
        let has_tools = variables.get("tools").is_some_and(|tools| !tools.is_null());
        let template = has_tools.then(|| self.environment.get_template(WITH_TOOLS).ok()).flatten();
        let template = template.map_or_else(|| self.environment.get_template(NAME), Ok);
        template.and_then(|template| template.render(Serde(variables))).map_err(|e| sentence(&e))
    }

    /// Whether the template reads a variable that is not its own, such as `tools`.
    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// The template itself.
    pub fn source(&self) -> String {
        self.environment
            .get_template(NAME)
            .map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// Whether these words stand in the template, such as a tag that the model writes.
    pub fn mentions(&self, words: &str) -> bool {
        self.templates().any(|template| template.source().contains(words))
    }

    fn templates(&self) -> impl Iterator<Item = minijinja::Template<'_, '_>> {
        [NAME, WITH_TOOLS].into_iter().filter_map(|name| self.environment.get_template(name).ok())
    }
}

fn environment() -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| sentence(&e))?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    functions::add(&mut environment);
    Ok(environment)
}

/// The template's own complaint, on one line.
fn sentence(error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    if error.kind() == ErrorKind::OutOfFuel {
        let why = "it runs too long or makes too much text, and is out of fuel";
        return Error::Template(format!("{why}{line}; give shorter messages, or another template"));
    }
    let text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::Template(format!("{text}{line}"))
}

//! Conversations to text, by the template that comes with a model.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Error, Result};

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
}

/// Instructions that a template may run: a long conversation takes thousands, an endless loop all of them.
const FUEL: u64 = 10_000_000;

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a `tokenizer_config.json`, or `template` if given; `None` if there is neither.
    ///
    /// # Errors
    /// [`Error::Template`] if it cannot be parsed.
    pub(super) fn from_config(config: &Json, template: Option<String>) -> Result<Option<Self>> {
        let template = match (template, config.get("chat_template")) {
            (Some(template), _) => template,
            (None, Some(Json::String(template))) => template.clone(),
            (None, Some(Json::Array(named))) => default_template(named)?,
            _ => return Ok(None),
        };
        let mut environment = environment(template)?;
        for key in ["bos_token", "eos_token", "pad_token", "unk_token"] {
            let token =
                config.get(key).and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
            if let Some(token) = token {
                environment.add_global(key, token);
            }
        }
        Ok(Some(Self { environment }))
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
        if let Some(tools) = tools {
            variables.insert("tools".to_owned(), tools.clone());
        }
        let template = self.environment.get_template(NAME).map_err(|e| sentence(&e))?;
        template.render(Serde(variables)).map_err(|e| sentence(&e))
    }

    /// Whether the template reads a variable that is not its own, such as `tools`.
    pub fn reads(&self, variable: &str) -> bool {
        let template = self.environment.get_template(NAME);
        template.is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    /// The template itself.
    pub fn source(&self) -> String {
        self.environment
            .get_template(NAME)
            .map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// Whether these words stand in the template, such as a tag that the model writes.
    pub fn mentions(&self, words: &str) -> bool {
        self.environment.get_template(NAME).is_ok_and(|template| template.source().contains(words))
    }
}

/// A list of templates holds one named `default`.
fn default_template(named: &[Json]) -> Result<String> {
    let default = named.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"));
    let template = default.and_then(|entry| entry.get("template")?.as_str());
    template.map(str::to_owned).ok_or_else(|| Error::Template("none of the list is named default".to_owned()))
}

fn environment(template: String) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| sentence(&e))?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(NAME, template).map_err(|e| sentence(&e))?;
    Ok(environment)
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it, which models were trained on.
#[expect(clippy::needless_pass_by_value, reason = "filters take their options by value")]
fn to_json(value: &minijinja::Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |e: serde_json::Error| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string());
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, pretty)).map_err(failed)?;
        }
        None => {
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?;
        }
    }
    String::from_utf8(out).map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e.to_string()))
}

/// A space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The template's own complaint, on one line.
fn sentence(error: &minijinja::Error) -> Error {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    Error::Template(format!("{text}{line}"))
}

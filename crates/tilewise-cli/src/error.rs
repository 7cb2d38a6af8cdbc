//! How a command fails.

use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// One sentence that names the thing and what to do, and the exit code that goes with it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CliError {
    /// The command line means nothing: exit code 2.
    Usage(String),
    /// A value that the library refuses: exit code 2. [`CliError::with_flag`] calls it as the command line does.
    Value {
        /// The library's name for it.
        name: &'static str,
        /// What it must be and was.
        why: String,
    },
    /// It could not be done: exit code 1.
    Failed(String),
    /// Nobody reads the output any more.
    Closed,
}

impl CliError {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Value { .. } => 2,
            Self::Failed(_) => 1,
            Self::Closed => 0,
        }
    }

    /// clap's message on one line: which argument is wrong, what it may be, all its tips, and whose help says more: that of
    /// the command with these words.
    pub(crate) fn of_line(error: &clap::Error, command: &str) -> Self {
        let text = error.render().to_string();
        // What follows is the usage, which --help says better.
        let is_usage =
            |paragraph: &&str| paragraph.starts_with("Usage:") || paragraph.starts_with("For more");
        let paragraphs = text.trim_start_matches("error: ").split("\n\n");
        let said: Vec<String> = paragraphs.take_while(|part| !is_usage(part)).map(in_a_line).collect();
        let mut said = said.join("; ");
        if is_model(error) {
            said.push_str("; a model is given by --model");
        }
        if let Some(text) = dashed_text(error) {
            said.push_str(&format!(
                "; a text that begins with a dash stands behind --: {command} -- '{text}'"
            ));
        }
        Self::Usage(format!("{said}; see {command} --help"))
    }

    /// The same with the flag of this command in place of a value's name, if it has one for it.
    pub(crate) fn with_flag(self, command: &clap::Command) -> Self {
        let Self::Value { name, why } = self else { return self };
        let flag = name.trim_start_matches("num_").replace('_', "-");
        let has_flag = command.get_arguments().any(|arg| arg.get_long() == Some(&flag));
        Self::Usage(if has_flag { format!("--{flag} {why}") } else { format!("{name} {why}") })
    }
}

/// What a value must be and was.
fn must_be(expected: &str, got: &str) -> String {
    format!("must be {expected}, got {got}")
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Failed(why) => f.write_str(why),
            Self::Value { name, why } => write!(f, "{name} {why}"),
            Self::Closed => f.write_str("the output was closed"),
        }
    }
}

impl From<tilewise::Error> for CliError {
    fn from(error: tilewise::Error) -> Self {
        match error {
            tilewise::Error::Value { name, expected, got } => {
                Self::Value { name, why: must_be(expected, &got) }
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<tilewise_engine::Error> for CliError {
    fn from(error: tilewise_engine::Error) -> Self {
        match error {
            tilewise_engine::Error::Device(error) => error.into(),
            tilewise_engine::Error::Value { name, expected, got } => {
                Self::Value { name, why: must_be(&expected, &got) }
            }
            tilewise_engine::Error::TooLong { .. } | tilewise_engine::Error::Grammar(_) => {
                Self::Usage(error.to_string())
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<tilewise_server::ServerError> for CliError {
    fn from(error: tilewise_server::ServerError) -> Self {
        match error {
            tilewise_server::ServerError::Model(error) => error.into(),
            tilewise_server::ServerError::Config(why) => Self::Usage(why),
            tilewise_server::ServerError::Listen { .. } => {
                Self::Failed(format!("{error}; choose another --port (0 takes a free one) or --host"))
            }
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(format!("output: {error}")),
        }
    }
}

/// Whether a word stands where none is taken: that of a model, most likely.
fn is_model(error: &clap::Error) -> bool {
    let is_word = matches!(
        error.get(ContextKind::InvalidArg),
        Some(ContextValue::String(word)) if !word.starts_with('-')
    );
    error.kind() == ErrorKind::UnknownArgument && is_word
}

/// What was meant as a text and read as a flag: it has several words.
fn dashed_text(error: &clap::Error) -> Option<&str> {
    let Some(ContextValue::String(text)) = error.get(ContextKind::InvalidArg) else { return None };
    (error.kind() == ErrorKind::UnknownArgument && text.starts_with('-') && text.contains(' '))
        .then_some(text.as_str())
}

fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! What the user says: by a line editor in a terminal, line by line from a pipe.

use std::io::BufRead;
use std::path::PathBuf;

use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, Editor};

use crate::env;
use crate::error::CliError;

/// Lines that are kept from one session to the next.
const HISTORY: usize = 1000;

/// One of the user's lines, or several that were pasted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Turn(String),
    Help,
    Clear,
    Exit,
    /// A word behind a slash that is no command, or a command with words behind it, which none has.
    Unknown(String),
}

impl Line {
    /// What a line means; `None` for one that is blank.
    fn read(text: &str) -> Option<Self> {
        Some(match text.trim_end() {
            line if line.trim_start().is_empty() => return None,
            "/help" | "/?" => Self::Help,
            "/clear" => Self::Clear,
            "/exit" | "/quit" | "/bye" => Self::Exit,
            line if names_a_command(line) => Self::Unknown(line.to_owned()),
            _ => Self::Turn(text.to_owned()),
        })
    }
}

/// Whether a line begins with a slash and a word of letters; one with a second slash is a path.
fn names_a_command(line: &str) -> bool {
    let word = line.strip_prefix('/').and_then(|line| line.split_whitespace().next());
    word.is_some_and(|word| word.bytes().all(|b| b.is_ascii_lowercase()))
}

/// Where lines come from.
pub(super) enum Lines {
    Editor {
        editor: Box<Editor<(), DefaultHistory>>,
        /// `None` where no history is kept.
        history: Option<PathBuf>,
    },
    Pipe,
}

impl Lines {
    /// A line editor, or stdin as it is.
    ///
    /// # Errors
    /// [`CliError::Failed`] for a terminal that has no lines to edit.
    pub(super) fn open(is_terminal: bool) -> Result<Self, CliError> {
        if !is_terminal {
            return Ok(Self::Pipe);
        }
        let config = Config::builder().max_history_size(HISTORY).map_err(|error| terminal(&error))?;
        let config = config.history_ignore_space(true).bracketed_paste(true).build();
        let mut editor = Editor::with_config(config).map_err(|error| terminal(&error))?;
        let history = history_file().and_then(|file| {
            let kept = match std::fs::exists(&file) {
                Ok(true) => editor.load_history(&file),
                _ => editor.save_history(&file),
            };
            kept.inspect_err(|error| {
                say!("tilewise: note: {}: no history of lines is kept: {error}", file.display());
            })
            .is_ok()
            .then_some(file)
        });
        Ok(Self::Editor { editor: Box::new(editor), history })
    }

    /// The next line that is not blank; `None` at the end.
    ///
    /// # Errors
    /// [`CliError::Failed`] for a terminal that is gone, [`CliError::Usage`] for what is no text.
    pub(super) fn next(&mut self) -> Result<Option<Line>, CliError> {
        loop {
            let Some(text) = self.read()? else { return Ok(None) };
            if let Some(line) = Line::read(&text) {
                return Ok(Some(line));
            }
        }
    }

    fn read(&mut self) -> Result<Option<String>, CliError> {
        match self {
            Self::Pipe => {
                let line = std::io::stdin().lock().lines().next();
                line.transpose().map_err(|error| CliError::Usage(format!("stdin: {error}")))
            }
            Self::Editor { editor, history } => match editor.readline("> ") {
                Ok(text) => {
                    keep(editor, history.as_ref(), &text);
                    Ok(Some(text))
                }
                Err(ReadlineError::Eof) => Ok(None),
                // Ctrl-C forgets the line.
                Err(ReadlineError::Interrupted) => {
                    say!("(Ctrl-D or /exit ends)");
                    Ok(Some(String::new()))
                }
                Err(error) => Err(terminal(&error)),
            },
        }
    }
}

/// Keeps a line for this session, and for later ones where that is possible.
fn keep(editor: &mut Editor<(), DefaultHistory>, file: Option<&PathBuf>, text: &str) {
    let is_new = editor.add_history_entry(text).unwrap_or(false);
    if let Some(file) = file.filter(|_| is_new) {
        // A full disk is no reason to end a conversation.
        let _ = editor.append_history(file);
    }
}

/// The file of the history, in a folder that is there; `None` where there is no place for one.
fn history_file() -> Option<PathBuf> {
    let folder = env::data_folder()?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat_history"))
}

fn terminal(error: &ReadlineError) -> CliError {
    CliError::Failed(format!("the terminal: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_behind_a_slash_are_commands_and_paths_are_turns() {
        let turn = |text: &str| Some(Line::Turn(text.to_owned()));
        for (text, line) in [
            ("", None),
            (" \t", None),
            ("/help ", Some(Line::Help)),
            ("/?", Some(Line::Help)),
            ("/clear", Some(Line::Clear)),
            ("/exit", Some(Line::Exit)),
            ("/quit", Some(Line::Exit)),
            ("/fly", Some(Line::Unknown("/fly".to_owned()))),
            ("/clear now", Some(Line::Unknown("/clear now".to_owned()))),
            ("/system Be brief.", Some(Line::Unknown("/system Be brief.".to_owned()))),
            // A space says that it is meant for the model.
            (" /help", turn(" /help")),
            ("/etc/hosts", turn("/etc/hosts")),
            ("/usr/bin is a folder", turn("/usr/bin is a folder")),
            ("/", turn("/")),
            ("  x = 1\ny = 2", turn("  x = 1\ny = 2")),
        ] {
            assert_eq!(Line::read(text), line, "{text:?}");
        }
    }
}

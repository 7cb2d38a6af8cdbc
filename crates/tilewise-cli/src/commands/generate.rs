//! `tilewise generate`

use std::io::{IsTerminal, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::json;
use tilewise_engine::chat::{ChatFormat, Conversation};
use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::{TextStream, Tokenizer};
use tilewise_engine::{GenerateRequest, Grammar, GrammarCompiler, KvBudget};

use super::completion::{self, Generated, Reader, complete};
use crate::args::{Format, GenerateArgs};
use crate::error::CliError;
use crate::model;

/// Tokens to generate unless told, where no turn ends.
const DEFAULT_NEW_TOKENS: usize = 128;

/// A prompt and what follows it.
struct Prompt {
    ids: Vec<u32>,
    /// `None` where a folder has none: token ids can still be continued.
    tokenizer: Option<Tokenizer>,
    grammar: Option<Grammar>,
    /// What of the files is set aside.
    notes: Vec<String>,
}

pub(crate) fn run(args: &GenerateArgs) -> Result<(), CliError> {
    if let Some(flag) = args.conversation.given().filter(|_| !args.chat) {
        return Err(CliError::Usage(format!(
            "{flag} needs --chat, which puts the prompt into a conversation"
        )));
    }
    let run = &args.run;
    let device = super::open_device(&run.device, &run.policy)?;
    let source = model::source(&run.model)?;
    let sizes = source.config()?;
    let sampling = run.sampling.params(&sizes.sampling_defaults)?;
    let Prompt { ids, tokenizer, grammar, notes } = read_prompt(args, &source)?;
    let max_new_tokens = max_new_tokens(args, ids.len(), sizes.max_positions)?;
    let kv = KvBudget::Tokens(ids.len() + max_new_tokens);
    let mut request = GenerateRequest::new(ids, max_new_tokens);
    request.sampling = sampling;
    request.sampling.logprobs = run.format == Format::Json;
    request.grammar = grammar.map(|grammar| GrammarCompiler::new(&source).compile(&grammar)).transpose()?;
    if tokenizer.is_none() && !run.stop.is_empty() {
        return Err(CliError::Usage("--stop needs a tokenizer, which the model has not".to_owned()));
    }
    let reader = Reader { tokenizer: tokenizer.as_ref(), text: TextStream::new(run.stop.clone()) };
    let mut engine = model::load(&device, &source, &completion::engine_config(run, kv)?)?;
    model::print_notes(&notes);
    model::print_sampling(&run.sampling.of_model(&sizes.sampling_defaults));
    let mut stdout = std::io::stdout().lock();
    match run.format {
        Format::Text => {
            let generated = complete(&mut engine, request, reader, |piece| {
                stdout.write_all(piece.as_bytes())?;
                stdout.flush().map(ControlFlow::Continue)
            })?;
            if generated.text.is_none() {
                let ids: Vec<String> = generated.output_ids.iter().map(u32::to_string).collect();
                write!(stdout, "{}", ids.join(","))?;
            }
            writeln!(stdout)?;
            if args.json_schema.is_some() && generated.finish_reason == "length" {
                say!("tilewise: note: the JSON is cut off: --max-new-tokens or the context ends it");
            }
            say!("{}", summary(&generated));
        }
        Format::Json => {
            let generated = complete(&mut engine, request, reader, |_| Ok(ControlFlow::Continue(())))?;
            writeln!(stdout, "{}", super::json_line(&generated)?)?;
        }
    }
    Ok(())
}

/// Tokens to generate at most behind a prompt.
fn max_new_tokens(args: &GenerateArgs, prompt: usize, context: usize) -> Result<usize, CliError> {
    let room = context.saturating_sub(prompt);
    if room == 0 {
        return Err(CliError::Usage(format!(
            "the prompt has {prompt} tokens and the model's context holds {context}, one at least for what is generated: \
             shorten it, or choose another --model"
        )));
    }
    match args.max_new_tokens {
        // As in a server, the context ends a text that may be longer.
        Some(most) => Ok(most.min(room)),
        None if args.chat => Ok(room),
        None => Ok(DEFAULT_NEW_TOKENS.min(room)),
    }
}

fn read_schema(path: &Path) -> Result<Grammar, CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::Usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
    Ok(Grammar::JsonSchema(serde_json::from_str(&text).map_err(|e| failed(&e))?))
}

fn read_prompt(args: &GenerateArgs, source: &ModelSource) -> Result<Prompt, CliError> {
    let grammar = args.json_schema.as_deref().map(read_schema).transpose()?;
    if let Some(ids) = &args.token_ids {
        let read = source.has_tokenizer().then(|| source.tokenizer()).transpose();
        let (tokenizer, notes) = match read {
            Ok(tokenizer) => (tokenizer, Vec::new()),
            Err(error) => (None, vec![format!("{error}; token ids are printed in place of text")]),
        };
        return Ok(Prompt { ids: ids.clone(), tokenizer, grammar, notes });
    }
    let text = read_text(args)?;
    if text.is_empty() {
        return Err(CliError::Usage("the prompt is empty; give at least one character".to_owned()));
    }
    let tokenizer = source.tokenizer()?;
    let (ids, grammar) = if args.chat {
        let template = tokenizer.chat_template()?;
        let system = args.conversation.system.iter().map(|text| json!({ "role": "system", "content": text }));
        let conversation = Conversation {
            messages: system.chain([json!({ "role": "user", "content": text })]).collect(),
            options: args.conversation.variables(template)?,
            grammar,
            ..Conversation::default()
        };
        let prompt = ChatFormat::choose(Some(template), None, None)?.prepare(template, &conversation)?;
        (tokenizer.encode(&prompt.text, false)?, prompt.grammar)
    } else {
        (tokenizer.encode(&text, true)?, grammar)
    };
    let notes = tokenizer.notes().to_vec();
    Ok(Prompt { ids, tokenizer: Some(tokenizer), grammar, notes })
}

/// The prompt as text, from wherever the command line says.
fn read_text(args: &GenerateArgs) -> Result<String, CliError> {
    if let Some(text) = &args.prompt_text {
        return Ok(text.clone());
    }
    let (place, text) = match (&args.prompt_file, args.prompt.as_deref()) {
        (Some(file), _) => (file.display().to_string(), std::fs::read_to_string(file)),
        (None, None) if std::io::stdin().is_terminal() => {
            return Err(CliError::Usage(
                "there is no prompt; give it as PROMPT, by --prompt TEXT, by --prompt-file FILE or through a pipe".to_owned(),
            ));
        }
        (None, None | Some("-")) => {
            let mut text = String::new();
            ("stdin".to_owned(), std::io::stdin().lock().read_to_string(&mut text).map(|_| text))
        }
        (None, Some(text)) => return Ok(text.to_owned()),
    };
    let text = text.map_err(|error| CliError::Usage(format!("{place}: {error}")))?;
    let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let text = end.unwrap_or(&text);
    if text.is_empty() {
        return Err(CliError::Usage(format!(
            "{place}: the prompt is empty; give at least one character, or a PROMPT"
        )));
    }
    Ok(text.to_owned())
}

fn summary(generated: &Generated) -> String {
    let (prompt, output) = (generated.prompt_ids.len(), generated.output_ids.len());
    let decode =
        generated.decode_median_s.map(|s| format!(", {:.2} ms per token", s * 1e3)).unwrap_or_default();
    let Generated { drafted, accepted, .. } = generated;
    let drafts = if *drafted > 0 { format!(", {accepted} of {drafted} drafts right") } else { String::new() };
    let (prefill, reason) = (generated.prefill_s * 1e3, generated.finish_reason);
    let cached = match generated.cached_tokens.total() {
        0 => String::new(),
        cached => format!(" ({cached} cached)"),
    };
    format!(
        "[{prompt} prompt tokens{cached} in {prefill:.1} ms, {output} new tokens{decode}{drafts}, {reason}]"
    )
}

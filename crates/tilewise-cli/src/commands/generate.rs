//! `tilewise generate`

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use tilewise_engine::model::ModelSource;
use tilewise_engine::tokenizer::{ChatMessage, TextStream, Tokenizer};
use tilewise_engine::{
    CachedTokens, Engine, EngineConfig, Event, FinishReason, GenerateRequest, Grammar, GrammarCompiler,
    KvBudget, SamplingParams, SpeculationStats,
};

use crate::args::{Format, GenerateArgs};
use crate::error::CliError;
use crate::model;

/// Tokens to generate unless told.
const DEFAULT_NEW_TOKENS: usize = 128;

#[derive(Debug, Default, Serialize)]
struct Generated {
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    /// `None` where the model has no tokenizer.
    text: Option<String>,
    logprobs: Vec<f32>,
    finish_reason: &'static str,
    /// The stop string that ended the text.
    stop: Option<String>,
    /// Tokens of the prompt that were not computed, by where they were found.
    cached_tokens: CachedTokens,
    prefill_s: f64,
    /// `None` where nothing was decoded after the prefill.
    decode_median_s: Option<f64>,
    /// Tokens that were guessed, and those that were right.
    drafted: u64,
    accepted: u64,
}

pub(crate) fn run(args: &GenerateArgs) -> Result<(), CliError> {
    let device = super::open_device(&args.device, &args.policy)?;
    let source = model::source(&args.model)?;
    let sizes = source.config()?;
    let (tokenizer, prompt) = read_prompt(args, &source)?;
    model::print_notes(tokenizer.as_ref().map_or(&[], Tokenizer::notes));
    let room = sizes.max_positions.saturating_sub(prompt.len());
    let max_new_tokens = args.max_new_tokens.unwrap_or(DEFAULT_NEW_TOKENS.min(room).max(1));
    let mut request = GenerateRequest::new(prompt, max_new_tokens);
    request.sampling = SamplingParams {
        temperature: args.temperature,
        min_p: args.min_p,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
        repetition_penalty: args.repetition_penalty,
        presence_penalty: args.presence_penalty,
        frequency_penalty: args.frequency_penalty,
        logprobs: args.format == Format::Json,
        ..SamplingParams::default()
    };
    request.sampling.validate()?;
    if let Some(schema) = args.json_schema.as_deref() {
        request.grammar = Some(GrammarCompiler::new(&source).compile(&read_schema(schema)?)?);
    }
    if tokenizer.is_none() && !args.stop.is_empty() {
        return Err(CliError::Usage("--stop needs a tokenizer, which the model has not".to_owned()));
    }
    let reader = Reader { tokenizer: tokenizer.as_ref(), text: TextStream::new(args.stop.clone()) };
    let tokens = request.prompt.len().saturating_add(max_new_tokens).min(room + request.prompt.len());
    let kv = KvBudget::Tokens(tokens);
    let speculation = model::speculation(&args.speculation)?;
    let tiers = model::tiers(&args.tiers)?;
    let dtype = args.dtype.0;
    let config = EngineConfig { dtype, kv, max_running: 1, tiers, speculation, ..EngineConfig::default() };
    let mut engine = model::load(&device, &source, &config)?;
    let mut stdout = std::io::stdout().lock();
    match args.format {
        Format::Text => {
            let generated = generate(&mut engine, request, reader, |piece| {
                stdout.write_all(piece.as_bytes())?;
                stdout.flush()
            })?;
            if generated.text.is_none() {
                let ids: Vec<String> = generated.output_ids.iter().map(u32::to_string).collect();
                write!(stdout, "{}", ids.join(","))?;
            }
            writeln!(stdout)?;
            eprintln!("{}", summary(&generated));
        }
        Format::Json => {
            let generated = generate(&mut engine, request, reader, |_| Ok(()))?;
            let json = serde_json::to_string(&generated).map_err(|e| CliError::Failed(e.to_string()))?;
            writeln!(stdout, "{json}")?;
        }
    }
    Ok(())
}

fn read_schema(path: &Path) -> Result<Grammar, CliError> {
    let failed = |why: &dyn std::fmt::Display| CliError::Usage(format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
    Ok(Grammar::JsonSchema(serde_json::from_str(&text).map_err(|e| failed(&e))?))
}

/// The prompt's ids, and the tokenizer; a folder without one can still continue token ids.
fn read_prompt(args: &GenerateArgs, source: &ModelSource) -> Result<(Option<Tokenizer>, Vec<u32>), CliError> {
    if let Some(ids) = &args.token_ids {
        return Ok((source.tokenizer().ok(), ids.clone()));
    }
    let tokenizer = source.tokenizer()?;
    let text = args.prompt.clone().unwrap_or_default();
    let ids = if args.chat {
        let turn = ChatMessage { role: "user".to_owned(), content: text };
        tokenizer.encode(&tokenizer.chat_template()?.apply(&[turn], true)?, false)?
    } else {
        tokenizer.encode(&text, true)?
    };
    if ids.is_empty() {
        return Err(CliError::Usage("the prompt is empty; give at least one character".to_owned()));
    }
    Ok((Some(tokenizer), ids))
}

/// Makes text of tokens, where the model has a tokenizer.
struct Reader<'a> {
    tokenizer: Option<&'a Tokenizer>,
    text: TextStream,
}

/// Runs one request to its end and passes on its text as it comes.
fn generate(
    engine: &mut Engine,
    request: GenerateRequest,
    reader: Reader<'_>,
    mut emit: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<Generated, CliError> {
    let mut generated = Generated { prompt_ids: request.prompt.clone(), ..Generated::default() };
    let Reader { tokenizer, text: mut stream } = reader;
    let mut text = String::new();
    let mut clock = Clock::start();
    let name = engine.submit(request)?;
    while engine.has_work() {
        let events = engine.step()?;
        clock.tokens(events.iter().filter(|event| matches!(event, Event::Token { .. })).count());
        for event in events {
            match event {
                Event::Token { id, logprob, .. } => {
                    generated.output_ids.push(id);
                    generated.logprobs.extend(logprob);
                    if let Some(tokenizer) = tokenizer {
                        let piece = stream.push(tokenizer, id)?;
                        emit(&piece.text)?;
                        text.push_str(&piece.text);
                        generated.stop = piece.stop;
                    }
                }
                Event::Finished { reason, cached_from, .. } => {
                    generated.cached_tokens = cached_from;
                    if let FinishReason::Failed(why) | FinishReason::Ungrammatical(why) = &reason {
                        return Err(CliError::Failed(format!("generation ended early: {why}")));
                    }
                    generated.finish_reason = reason.name();
                }
                _ => {}
            }
        }
        if generated.stop.is_some() {
            engine.abort(name);
            generated.finish_reason = "stop";
        }
    }
    if let Some(tokenizer) = tokenizer {
        if generated.stop.is_none() {
            let rest = stream.finish(tokenizer)?;
            emit(&rest.text)?;
            text.push_str(&rest.text);
            generated.stop = rest.stop;
        }
        generated.text = Some(text);
    }
    (generated.prefill_s, generated.decode_median_s) = clock.finish();
    let SpeculationStats { drafted, accepted, .. } = engine.stats().speculation;
    (generated.drafted, generated.accepted) = (drafted, accepted);
    Ok(generated)
}

/// Times the first token apart from the others.
struct Clock {
    last: Instant,
    tokens: Vec<Duration>,
}

impl Clock {
    fn start() -> Self {
        Self { last: Instant::now(), tokens: Vec::new() }
    }

    /// Counts the tokens of a step, which took the same time each.
    fn tokens(&mut self, count: usize) {
        if count > 0 {
            let now = Instant::now();
            self.tokens.extend(std::iter::repeat_n((now - self.last) / count as u32, count));
            self.last = now;
        }
    }

    /// Seconds to the first token, and the median of the seconds to each later one.
    fn finish(self) -> (f64, Option<f64>) {
        let seconds: Vec<f64> = self.tokens.iter().map(Duration::as_secs_f64).collect();
        let Some((&first, later)) = seconds.split_first() else { return (0.0, None) };
        (first, (!later.is_empty()).then(|| super::median(later)))
    }
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

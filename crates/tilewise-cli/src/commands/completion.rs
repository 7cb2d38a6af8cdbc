//! One request from its prompt to its end, and its text as it comes.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;
use tilewise_engine::tokenizer::{TextStream, Tokenizer};
use tilewise_engine::{
    CachedTokens, Engine, EngineConfig, Event, FinishReason, GenerateRequest, KvBudget, SpeculationStats,
};

use crate::args::RunArgs;
use crate::error::CliError;
use crate::model;

/// How a completion ended that somebody broke off.
pub(super) const ABORTED: &str = "abort";

/// What was generated.
#[derive(Debug, Default, Serialize)]
pub(super) struct Generated {
    pub(super) prompt_ids: Vec<u32>,
    pub(super) output_ids: Vec<u32>,
    /// `None` where the model has no tokenizer.
    pub(super) text: Option<String>,
    pub(super) logprobs: Vec<f32>,
    pub(super) finish_reason: &'static str,
    /// The stop string that ended the text.
    pub(super) stop: Option<String>,
    /// Tokens of the prompt that were not computed, by where they were found.
    pub(super) cached_tokens: CachedTokens,
    pub(super) prefill_s: f64,
    /// `None` where nothing was decoded after the prefill.
    pub(super) decode_median_s: Option<f64>,
    /// Tokens that were guessed, and those that were right.
    pub(super) drafted: u64,
    pub(super) accepted: u64,
}

/// An engine for one text at a time, as the command line wants it.
///
/// # Errors
/// As [`model::speculation`] and [`model::tiers`].
pub(super) fn engine_config(args: &RunArgs, kv: KvBudget) -> Result<EngineConfig, CliError> {
    Ok(EngineConfig {
        dtype: args.dtype.0,
        kv,
        max_running: 1,
        tiers: model::tiers(&args.tiers)?,
        speculation: model::speculation(&args.speculation)?,
        ..EngineConfig::default()
    })
}

/// Makes text of tokens, where the model has a tokenizer.
pub(super) struct Reader<'a> {
    pub(super) tokenizer: Option<&'a Tokenizer>,
    pub(super) text: TextStream,
}

/// Runs one request to its end. `emit` is given what each step adds to the text, which may be nothing, and may break it
/// off; what was held back of the text until then is added at the end.
///
/// # Errors
/// As [`Engine::submit`] and [`Engine::step`]; [`CliError::Failed`] for a completion that fails by itself.
pub(super) fn complete(
    engine: &mut Engine,
    request: GenerateRequest,
    reader: Reader<'_>,
    mut emit: impl FnMut(&str) -> io::Result<ControlFlow<()>>,
) -> Result<Generated, CliError> {
    let mut generated = Generated { prompt_ids: request.prompt.clone(), ..Generated::default() };
    let Reader { tokenizer, text: mut stream } = reader;
    let (mut text, mut clock) = (String::new(), Clock::start());
    let name = engine.submit(request)?;
    while engine.has_work() {
        let events = engine.step()?;
        clock.tokens(events.iter().filter(|event| matches!(event, Event::Token { .. })).count());
        let begin = text.len();
        for event in events {
            match event {
                // Tokens of a step behind the one that completes a stop string are no part of the text.
                Event::Token { id, logprob, .. } if generated.stop.is_none() => {
                    generated.output_ids.push(id);
                    generated.logprobs.extend(logprob);
                    if let Some(tokenizer) = tokenizer {
                        let piece = stream.push(tokenizer, id)?;
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
        let is_broken_off = emit(&text[begin..])?.is_break() && engine.has_work();
        if generated.stop.is_some() || is_broken_off {
            engine.abort(name);
            generated.finish_reason = if generated.stop.is_some() { "stop" } else { ABORTED };
        }
    }
    if let Some(tokenizer) = tokenizer {
        if generated.stop.is_none() {
            let rest = stream.finish(tokenizer)?;
            let _ = emit(&rest.text)?;
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

//! What arrives when: a synthetic trace, or one from a file.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;
use tilewise_engine::GenerateRequest;
use tilewise_engine::tokenizer::Tokenizer;

use super::super::scatter;
use crate::args::BenchServingOfflineArgs;
use crate::error::CliError;

/// A request and the second at which it arrives.
pub(super) struct Arrival {
    pub at: f64,
    pub request: GenerateRequest,
}

/// A line of a trace's file: a prompt as ids or as text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(default)]
    arrival_s: f64,
    prompt_ids: Option<Vec<u32>>,
    prompt: Option<String>,
    max_new_tokens: usize,
    cache_salt: Option<String>,
    #[serde(default)]
    ignore_eos: bool,
}

/// The requests of a file of JSON lines, by arrival.
///
/// # Errors
/// [`CliError::Usage`] that names the line that is no request.
pub(super) fn read(path: &Path, tokenizer: Option<&Tokenizer>) -> Result<Vec<Arrival>, CliError> {
    let failed = |error: std::io::Error| CliError::Failed(format!("{}: {error}", path.display()));
    let file = std::io::BufReader::new(std::fs::File::open(path).map_err(failed)?);
    let mut arrivals = Vec::new();
    for (number, line) in (1..).zip(file.lines()) {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        let arrival = parse(&line, tokenizer)
            .map_err(|why| CliError::Usage(format!("{}:{number}: {why}", path.display())))?;
        arrivals.push(arrival);
    }
    if arrivals.is_empty() {
        return Err(CliError::Usage(format!("{} has no requests", path.display())));
    }
    arrivals.sort_by(|a, b| a.at.total_cmp(&b.at));
    Ok(arrivals)
}

fn parse(line: &str, tokenizer: Option<&Tokenizer>) -> Result<Arrival, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if !(line.arrival_s.is_finite() && line.arrival_s >= 0.0) {
        return Err("arrival_s must be finite and at least 0".to_owned());
    }
    let prompt = match (line.prompt_ids, line.prompt) {
        (Some(ids), None) => ids,
        (None, Some(text)) => {
            let tokenizer = tokenizer.ok_or("the model has no tokenizer; give prompt_ids")?;
            tokenizer.encode(&text, true).map_err(|error| error.to_string())?
        }
        _ => return Err("give either prompt_ids or prompt".to_owned()),
    };
    let mut request = GenerateRequest::new(prompt, line.max_new_tokens);
    request.cache_salt = line.cache_salt;
    request.ignore_eos = line.ignore_eos;
    Ok(Arrival { at: line.arrival_s, request })
}

/// Requests whose prompts begin with one of a few prefixes, at exponential distances.
pub(super) fn synthetic(args: &BenchServingOfflineArgs, vocab_size: usize) -> Vec<Arrival> {
    let vocab = vocab_size.min(10_000) as u64;
    // Streams of numbers: one for each prefix, and for each request its tokens, lengths and time.
    let number = |stream: u64, index: u64| scatter(scatter(args.seed ^ stream << 40).wrapping_add(index));
    let between =
        |range: (usize, usize), random: u64| range.0 + (random % (range.1 - range.0 + 1) as u64) as usize;
    let mut at = 0.0;
    let arrival = |request: u64| {
        let lengths = 1 << 20 | request;
        let prefix = number(lengths, 0) % args.prefixes.max(1) as u64;
        let own = between(args.input_len, number(lengths, 1));
        let output = between(args.output_len, number(lengths, 2));
        let shared = (0..args.prefix_len as u64).map(|index| number(1 << 21 | prefix, index));
        let tokens = shared.chain((0..own as u64).map(|index| number(1 << 22 | request, index)));
        let mut generate = GenerateRequest::new(tokens.map(|x| (x % vocab) as u32).collect(), output);
        generate.ignore_eos = true;
        if let Some(rate) = args.request_rate {
            let uniform = (number(lengths, 3) % (1 << 52) + 1) as f64 / (1u64 << 52) as f64;
            at -= uniform.ln() / rate;
        }
        Arrival { at, request: generate }
    };
    (0..args.num_requests as u64).map(arrival).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_request_or_says_what_is_wrong() {
        let arrival = parse(
            r#"{"arrival_s": 0.5, "prompt_ids": [1, 2], "max_new_tokens": 3, "cache_salt": "a"}"#,
            None,
        )
        .unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(
            (arrival.at, arrival.request.prompt, arrival.request.max_new_tokens),
            (0.5, vec![1, 2], 3)
        );
        assert_eq!(arrival.request.cache_salt.as_deref(), Some("a"));
        for (line, word) in [
            (r#"{"max_new_tokens": 3}"#, "prompt_ids"),
            (r#"{"prompt_ids": [1], "prompt": "x", "max_new_tokens": 3}"#, "either"),
            (r#"{"prompt": "x", "max_new_tokens": 3}"#, "tokenizer"),
            (r#"{"prompt_ids": [1], "max_new_tokens": 3, "arrival_s": -1}"#, "arrival_s"),
            (r#"{"prompt_ids": [1], "max_tokens": 3}"#, "max_tokens"),
            ("[", "EOF"),
        ] {
            let why = parse(line, None).err().unwrap_or_default();
            assert!(why.contains(word), "{line}: {why:?}");
        }
    }
}

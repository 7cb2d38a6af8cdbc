//! `tilewise inspect`

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use tilewise::{DType, KvCacheConfig};
use tilewise_engine::model::SamplingDefaults;
use tilewise_engine::tokenizer::Tokenizer;

use crate::args::{Format, InspectArgs, ModelArgs};
use crate::error::CliError;
use crate::model;

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    architecture: &'static str,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    qo_heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    context: usize,
    tied_embeddings: bool,
    tensors: usize,
    parameters: usize,
    /// Bytes of weights in the files, by element type.
    weight_bytes_by_dtype: BTreeMap<String, usize>,
    weight_bytes: usize,
    /// `None` where there is no tokenizer, or none that can be used.
    tokenizer_tokens: Option<usize>,
    chat_template: bool,
    /// Tokens that end a text.
    end_tokens: Vec<u32>,
    /// How requests draw tokens that do not say it.
    sampling_defaults: Sampling,
    /// What the files say that is set aside.
    notes: Vec<String>,
    /// What text cannot be generated without.
    problems: Vec<String>,
    device: String,
    device_memory_bytes: usize,
    fits: bool,
    kv: Vec<KvReport>,
}

/// The model's own sampling; `None` is said nowhere.
#[derive(Debug, Serialize)]
struct Sampling {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl Sampling {
    fn of(defaults: &SamplingDefaults) -> Self {
        let SamplingDefaults { temperature, top_p, top_k, min_p, repetition_penalty } = *defaults;
        Self { temperature, top_p, top_k, min_p, repetition_penalty }
    }
}

/// What a cache of one element type costs.
#[derive(Debug, Serialize)]
struct KvReport {
    kv_dtype: &'static str,
    bytes_per_token: usize,
    /// That fit beside the weights.
    tokens: usize,
}

pub(crate) fn run(args: &InspectArgs) -> Result<(), CliError> {
    let report = inspect(args)?;
    let mut out = std::io::stdout().lock();
    match args.format {
        Format::Json => writeln!(out, "{}", super::json_line(&report)?)?,
        Format::Text => print(&report, &mut out)?,
    }
    // What can be said is said; what generating would fail by fails here too.
    match report.problems.into_iter().next() {
        Some(problem) => Err(CliError::Failed(problem)),
        None => Ok(()),
    }
}

fn inspect(args: &InspectArgs) -> Result<Report, CliError> {
    let device = model::open_device(&args.device)?;
    let source = model::source(&ModelArgs {
        path: args.model.clone().or(args.named.clone()),
        revision: args.revision.clone(),
    })?;
    let (config, weights) = source.open()?;
    let (mut notes, mut problems) = (config.notes.clone(), Vec::new());
    let tokenizer = if source.has_tokenizer() { Some(source.tokenizer()) } else { None };
    let tokenizer = tokenizer.and_then(|tokenizer| tokenizer.map_err(|e| problems.push(e.to_string())).ok());
    let template = tokenizer.as_ref().map(Tokenizer::chat_template);
    if let Some(tokenizer) = &tokenizer {
        notes.extend_from_slice(tokenizer.notes());
        // A model without a template has nothing that is wrong.
        if let Some(why) = tokenizer.template_error() {
            notes.push(format!("chats are refused: {why}"));
        }
    }
    let mut by_dtype = BTreeMap::new();
    let (mut tensors, mut parameters) = (0, 0);
    for tensor in weights.tensors() {
        *by_dtype.entry(tensor.dtype).or_insert(0) += tensor.bytes;
        parameters += tensor.shape.iter().product::<usize>();
        tensors += 1;
    }
    let memory = device.caps().memory;
    let left = memory.saturating_sub(weights.total_bytes());
    let kv = [DType::F32, DType::F16, DType::Bf16].map(|dtype| {
        let page = KvCacheConfig {
            num_layers: config.num_layers,
            num_pages: 1,
            page_size: 32,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            value_dim: config.head_dim,
            dtype,
        };
        let tokens = left / page.page_bytes() * page.page_size;
        KvReport { kv_dtype: dtype.name(), bytes_per_token: config.kv_bytes_per_token(dtype), tokens }
    });
    Ok(Report {
        model: source.name(),
        architecture: config.family.architecture,
        layers: config.num_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        qo_heads: config.num_qo_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        vocab_size: config.vocab_size,
        context: config.max_positions,
        tied_embeddings: config.tie_word_embeddings,
        tensors,
        parameters,
        weight_bytes_by_dtype: by_dtype,
        weight_bytes: weights.total_bytes(),
        tokenizer_tokens: tokenizer.as_ref().map(|tokenizer| tokenizer.vocab_size()),
        chat_template: template.is_some_and(|template| template.is_ok()),
        end_tokens: config.eos_ids.clone(),
        sampling_defaults: Sampling::of(&config.sampling_defaults),
        notes,
        problems,
        device: device.caps().name.clone(),
        device_memory_bytes: memory,
        fits: left > 0,
        kv: kv.into(),
    })
}

fn print(report: &Report, out: &mut impl Write) -> std::io::Result<()> {
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let Report { layers, hidden_size, intermediate_size, qo_heads, kv_heads, head_dim, .. } = report;
    writeln!(out, "model         {}", report.model)?;
    writeln!(out, "architecture  {}", report.architecture)?;
    writeln!(out, "layers        {layers} of {hidden_size}, {intermediate_size} in the feed-forward layers")?;
    writeln!(out, "attention     {qo_heads} query heads over {kv_heads} KV heads of {head_dim}")?;
    writeln!(out, "context       {} tokens", report.context)?;
    let tied = if report.tied_embeddings { "tied" } else { "own output matrix" };
    writeln!(out, "vocabulary    {} tokens, {tied}", report.vocab_size)?;
    let tokenizer = match report.tokenizer_tokens {
        None => report.problems.first().map_or_else(
            || "none: text and serve need tokenizer.json".to_owned(),
            |why| format!("cannot be used: {why}"),
        ),
        Some(tokens) => {
            format!("{tokens} tokens, {} chat template", if report.chat_template { "with" } else { "no" })
        }
    };
    writeln!(out, "tokenizer     {tokenizer}")?;
    let dtypes: Vec<_> =
        report.weight_bytes_by_dtype.iter().map(|(dtype, &n)| format!("{dtype} {}", mib(n))).collect();
    writeln!(
        out,
        "weights       {} parameters in {} tensors: {}",
        report.parameters,
        report.tensors,
        dtypes.join(", ")
    )?;
    let fits = if report.fits { "the weights fit" } else { "the weights do not fit" };
    writeln!(out, "device        {}, {} of memory: {fits}", report.device, mib(report.device_memory_bytes))?;
    for note in &report.notes {
        writeln!(out, "note          {note}")?;
    }
    for kv in &report.kv {
        let KvReport { kv_dtype, bytes_per_token, tokens } = kv;
        writeln!(out, "cache         {kv_dtype}: {bytes_per_token} bytes per token, {tokens} tokens fit")?;
    }
    Ok(())
}

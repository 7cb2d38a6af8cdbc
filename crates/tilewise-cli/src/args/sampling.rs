//! How tokens are drawn, and what a chat template is told.

use clap::Args;
use serde_json::{Map, Value};
use tilewise_engine::SamplingParams;
use tilewise_engine::chat::Thinking;
use tilewise_engine::model::SamplingDefaults as ModelDefaults;
use tilewise_engine::tokenizer::ChatTemplate;

use super::SamplingDefaults;
use super::values::top_k;
use crate::error::CliError;

/// How the next token is drawn.
#[derive(Debug, Clone, Args)]
pub(crate) struct SamplingArgs {
    /// Whose sampling parameters count where no flag says one: the model's, from its generation_config.json, or nobody's,
    /// which takes the most probable token
    #[arg(long, value_enum, default_value = "model")]
    pub(crate) sampling_defaults: SamplingDefaults,
    /// Divides the logits; 0, the default without the model's, takes the most probable token
    #[arg(long, allow_negative_numbers = true, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Draw among the tokens whose probability is at least P of the largest
    #[arg(long, allow_negative_numbers = true, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Draw among the K most probable tokens only; 0 and -1 are all
    #[arg(long, value_parser = top_k, allow_negative_numbers = true, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Draw among the fewest tokens whose probabilities reach P; 0 keeps one
    #[arg(long, allow_negative_numbers = true, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Divides the logits of tokens that were there, or multiplies those below zero; 1 changes nothing
    #[arg(long, allow_negative_numbers = true, value_name = "R")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Subtracted from the logits of tokens that were generated
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    pub(crate) presence_penalty: f32,
    /// Subtracted as often as the token was generated
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true, value_name = "X")]
    pub(crate) frequency_penalty: f32,
    /// Selects the random stream
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_name = "S")]
    pub(crate) seed: u64,
}

impl SamplingArgs {
    /// What of the model's own parameters counts: nothing that a flag says.
    pub(crate) fn of_model(&self, model: &ModelDefaults) -> ModelDefaults {
        let unless = |is_given: bool| !is_given && self.sampling_defaults == SamplingDefaults::Model;
        ModelDefaults {
            temperature: model.temperature.filter(|_| unless(self.temperature.is_some())),
            top_p: model.top_p.filter(|_| unless(self.top_p.is_some())),
            top_k: model.top_k.filter(|_| unless(self.top_k.is_some())),
            min_p: model.min_p.filter(|_| unless(self.min_p.is_some())),
            repetition_penalty: model
                .repetition_penalty
                .filter(|_| unless(self.repetition_penalty.is_some())),
        }
    }

    /// The parameters, from flags, then from the model, then those of the library, which are greedy.
    ///
    /// # Errors
    /// [`CliError::Usage`] that names the first that means nothing.
    pub(crate) fn params(&self, model: &ModelDefaults) -> Result<SamplingParams, CliError> {
        let (model, neutral) = (self.of_model(model), SamplingParams::default());
        let mut params = SamplingParams {
            temperature: self.temperature.or(model.temperature).unwrap_or(neutral.temperature),
            min_p: self.min_p.or(model.min_p).unwrap_or(neutral.min_p),
            top_k: self.top_k.or(model.top_k).filter(|&k| k > 0),
            top_p: self.top_p.or(model.top_p).unwrap_or(neutral.top_p),
            repetition_penalty: self
                .repetition_penalty
                .or(model.repetition_penalty)
                .unwrap_or(neutral.repetition_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            ..neutral
        };
        // As in a server.
        if params.top_p == 0.0 {
            (params.top_k, params.top_p) = (Some(1), 1.0);
        }
        params.validate()?;
        Ok(params)
    }
}

/// What a conversation begins with.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConversationArgs {
    /// What the model is told before the first turn
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Let the model think before it answers, where its chat template has a switch for it; the template decides unless
    /// --think or --no-think is given
    #[arg(long, overrides_with = "no_think")]
    think: bool,
    /// Let it answer at once
    #[arg(long)]
    no_think: bool,
}

impl ConversationArgs {
    /// The first flag that is given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        self.system.as_ref().map(|_| "--system").or(self.switch())
    }

    fn switch(&self) -> Option<&'static str> {
        if self.no_think { Some("--no-think") } else { self.think.then_some("--think") }
    }

    /// The template's variables.
    ///
    /// # Errors
    /// [`CliError::Usage`] where the template has no switch for thinking and one is thrown.
    pub(crate) fn variables(&self, template: &ChatTemplate) -> Result<Map<String, Value>, CliError> {
        let mut variables = Map::new();
        if let Some(flag) = self.switch() {
            if !(template.reads("enable_thinking") || template.reads("thinking")) {
                return Err(CliError::Usage(format!(
                    "{flag} needs a chat template with a switch for thinking, which this model's has not; leave it out"
                )));
            }
            Thinking { enabled: Some(!self.no_think), effort: None }.set(&mut variables);
        }
        Ok(variables)
    }
}

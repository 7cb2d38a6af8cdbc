//! Logits to tokens: what penalties change of them, and a random stream per request that any batch reads at the same
//! place.

use std::collections::BTreeMap;

use tilewise::{DType, Device, Draw, LogitChange, Logprobs, LogprobsOf, NotFinite, Sampled, Tensor};

use crate::grammar::AllowedTokens;
use crate::scheduler::{BatchPlan, ScheduledSequence};
use crate::{Result, SamplingParams};

/// Draws a batch's tokens on the device.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Rows of logits as they were before any change, for the logprobs of those that ask for them.
    unchanged: Option<Tensor>,
}

/// What a batch drew, for each row of logits in order.
#[derive(Debug, Default)]
pub struct Drawn {
    /// The token with its logprob.
    pub sampled: Vec<Result<Sampled, NotFinite>>,
    /// The most probable tokens with theirs, where asked for.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
}

impl Sampler {
    /// Changes the logits as each sequence asks, leaves what its grammar allows, and draws.
    ///
    /// Logprobs are those of the unchanged logits at temperature 1, as clients of OpenAI's interface and of vLLM expect.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn sample(
        &mut self,
        device: &dyn Device,
        logits: &mut Tensor,
        batch: &BatchPlan,
        allowed: &AllowedTokens,
    ) -> Result<Drawn> {
        let mut draws = draws(batch);
        if draws.is_empty() {
            return Ok(Drawn::default());
        }
        let (mut changes, mut asked) = (Vec::new(), Vec::new());
        for sequence in &batch.sequences {
            let Some(params) = &sequence.sampling else { continue };
            let (own, first) = (sequence.changes.iter(), sequence.first_row as u32);
            changes.extend(own.map(|change| LogitChange { row: first + change.row, ..*change }));
            for row in first..first + sequence.num_rows() as u32 {
                let changed = !sequence.changes.is_empty() || allowed.rows.binary_search(&row).is_ok();
                if params.logprobs && (params.top_logprobs > 0 || changed) {
                    asked.push((row, params.top_logprobs as u32));
                    draws[row as usize].logprob = false;
                }
            }
        }
        if !asked.is_empty() {
            self.keep(device, logits, &asked)?;
        }
        if !changes.is_empty() {
            device.adjust_logits(logits, &changes)?;
        }
        if !allowed.rows.is_empty() {
            device.mask_logits(logits, &allowed.rows, &allowed.bits)?;
        }
        let mut drawn =
            Drawn { top_logprobs: vec![Vec::new(); draws.len()], sampled: device.sample(logits, &draws)? };
        self.tell(device, &asked, &mut drawn)?;
        Ok(drawn)
    }

    /// Copies the rows whose logprobs are told of later.
    fn keep(&mut self, device: &dyn Device, logits: &Tensor, asked: &[(u32, u32)]) -> Result<()> {
        let rows: Vec<u32> = asked.iter().map(|asked| asked.0).collect();
        let fits = self.unchanged.as_mut().is_some_and(|kept| kept.set_rows(rows.len()).is_ok());
        if !fits {
            self.unchanged = Some(device.alloc(&[rows.len(), logits.row_len()], DType::F32)?);
        }
        Ok(self.unchanged.as_mut().map_or(Ok(()), |kept| device.gather_rows(logits, &rows, kept))?)
    }

    /// Adds the logprobs of the rows that were kept.
    fn tell(&self, device: &dyn Device, asked: &[(u32, u32)], drawn: &mut Drawn) -> Result<()> {
        let Some(unchanged) = self.unchanged.as_ref().filter(|_| !asked.is_empty()) else { return Ok(()) };
        let token = |row: u32| drawn.sampled[row as usize].map_or(0, |sampled| sampled.id);
        let of: Vec<_> = asked.iter().map(|&(row, top)| LogprobsOf { token: token(row), top }).collect();
        for (&(row, _), told) in asked.iter().zip(device.logprobs(unchanged, &of)?) {
            let sampled = &mut drawn.sampled[row as usize];
            match (sampled, told) {
                (Ok(sampled), Ok(Logprobs { logprob, top })) => {
                    sampled.logprob = Some(logprob);
                    drawn.top_logprobs[row as usize] = top;
                }
                (sampled, _) => *sampled = Err(NotFinite),
            }
        }
        Ok(())
    }
}

/// How to draw each row of a batch's logits, in their order.
pub fn draws(batch: &BatchPlan) -> Vec<Draw> {
    let rows = |sequence: &ScheduledSequence| {
        sequence.next_position..sequence.next_position + sequence.num_rows() as u64
    };
    let sampled = batch.sequences.iter().filter_map(|s| Some((s, s.sampling.as_ref()?)));
    sampled.flat_map(|(s, params)| rows(s).map(|position| draw(params, position))).collect()
}

/// How to draw the token at `position` of a sequence.
pub fn draw(params: &SamplingParams, position: u64) -> Draw {
    Draw {
        temperature: params.temperature,
        min_p: params.min_p,
        // More than there are tokens keeps all of them.
        top_k: params.top_k.map(|k| k.try_into().unwrap_or(u32::MAX)),
        top_p: params.top_p,
        chance: uniform(params.seed, position),
        logprob: params.logprobs,
    }
}

/// The tokens of a sequence whose logits its parameters change.
#[derive(Debug, Clone, Default)]
pub struct History {
    tokens: BTreeMap<u32, Occurrence>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Occurrence {
    bias: f32,
    /// In the prompt or the output.
    seen: bool,
    /// How often in the output.
    generated: u32,
}

impl History {
    /// That of a sequence which has its prompt only.
    pub fn new(params: &SamplingParams, prompt: &[u32]) -> Self {
        let mut history = Self::default();
        for &(token, bias) in &params.logit_bias {
            history.tokens.entry(token).or_default().bias = bias;
        }
        if params.repetition_penalty != 1.0 {
            for &token in prompt {
                history.tokens.entry(token).or_default().seen = true;
            }
        }
        history
    }

    /// Adds a generated token.
    pub fn push(&mut self, params: &SamplingParams, token: u32) {
        if params.has_penalties() {
            let occurrence = self.tokens.entry(token).or_default();
            occurrence.seen = true;
            occurrence.generated += 1;
        }
    }

    /// What to change of the next row of logits, row 0, and of those after each of `drafts`; ascending.
    pub fn changes(&self, params: &SamplingParams, drafts: &[u32]) -> Vec<LogitChange> {
        let mut changes = self.changes_of_row(params, 0);
        if !drafts.is_empty() && !changes_nothing(params) {
            let mut after = self.clone();
            for (row, &draft) in (1..).zip(drafts) {
                after.push(params, draft);
                changes.extend(after.changes_of_row(params, row));
            }
        }
        changes
    }

    fn changes_of_row(&self, params: &SamplingParams, row: u32) -> Vec<LogitChange> {
        let change = |(&token, occurrence): (&u32, &Occurrence)| {
            let generated = occurrence.generated as f32;
            LogitChange {
                row,
                token,
                bias: occurrence.bias,
                repetition: if occurrence.seen { params.repetition_penalty } else { 1.0 },
                penalty: params.presence_penalty * generated.min(1.0) + params.frequency_penalty * generated,
            }
        };
        self.tokens.iter().map(change).collect()
    }
}

/// Whether no logit is ever changed.
fn changes_nothing(params: &SamplingParams) -> bool {
    params.logit_bias.is_empty() && !params.has_penalties()
}

/// The seed of a completion's own random stream; that of the first is the request's.
pub(crate) fn completion_seed(seed: u64, index: usize) -> u64 {
    match index {
        0 => seed,
        index => mix(mix(seed) ^ mix(index as u64)),
    }
}

/// A number in `0..1` that depends on the seed and the position only: a random stream that any batch, chunk
/// or preemption reads at the same place.
fn uniform(seed: u64, position: u64) -> f64 {
    let bits = mix(mix(seed).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014), a bijection that avalanches.
fn mix(seed: u64) -> u64 {
    let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_numbers_fill_the_unit_interval_evenly_for_any_seed() {
        for seed in [0, 1, 2, u64::MAX] {
            let mut buckets = [0usize; 16];
            for position in 0..16_000 {
                buckets[(uniform(seed, position) * 16.0) as usize] += 1;
            }
            // 15 degrees of freedom: 44 is exceeded once in 10^4.
            let chi2: f64 = buckets.iter().map(|&n| (n as f64 - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi2 < 44.0, "seed {seed}: {chi2} {buckets:?}");
        }
    }
}

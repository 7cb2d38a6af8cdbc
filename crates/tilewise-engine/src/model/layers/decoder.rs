//! A stack of pre-norm layers between an embedding and an output matrix.

use tilewise::{AttentionParams, DType, Device, Linear, Tensor};

use super::{Activations, Attention, FeedForward, LayerCx, Limits, Norm, RopeTable};
use crate::Result;
use crate::model::{Forward, Loader, Model, ModelConfig};

/// Attention and feed-forward, each after a norm and each added to the residual stream.
pub struct DecoderLayer {
    attention_norm: Norm,
    attention: Attention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl DecoderLayer {
    /// Loads `{prefix}.self_attn`, `{prefix}.mlp` and their norms; `head_norms` as [`Attention::load`] takes
    /// it.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn load(
        loader: &mut Loader<'_>,
        config: &ModelConfig,
        prefix: &str,
        head_norms: bool,
    ) -> Result<Self> {
        let feed_forward_norm = format!("{prefix}.post_attention_layernorm");
        Ok(Self {
            attention_norm: Norm::load(loader, config, &format!("{prefix}.input_layernorm"))?,
            attention: Attention::load(loader, config, &format!("{prefix}.self_attn"), head_norms)?,
            feed_forward_norm: Norm::load(loader, config, &feed_forward_norm)?,
            feed_forward: FeedForward::load(loader, config, &format!("{prefix}.mlp"))?,
        })
    }

    /// Runs the layer on the residual stream, which after attention has `rows` only, if they are said.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn forward(&self, cx: &mut LayerCx<'_>, rows: Option<&[u32]>) -> Result<()> {
        self.attention.attend(cx, &self.attention_norm)?;
        if let Some(rows) = rows {
            cx.activations.narrow(cx.device, rows)?;
        }
        self.attention.project(cx)?;
        self.feed_forward.forward(cx, &self.feed_forward_norm)
    }
}

/// A decoder whose layers all attend alike.
pub struct Decoder {
    config: ModelConfig,
    embedding: Linear,
    /// `None` where the embedding is the output matrix too.
    head: Option<Linear>,
    layers: Vec<DecoderLayer>,
    final_norm: Norm,
    rope: RopeTable,
    activations: Activations,
}

impl Decoder {
    /// Names and shapes of the tensors that [`Decoder::load`] asks for.
    pub fn tensors(config: &ModelConfig, head_norms: bool) -> Vec<(String, Vec<usize>)> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, head_dim: dim, .. } = *config;
        let (q, kv) = (config.num_qo_heads * dim, config.num_kv_heads * dim);
        let matrices = [
            ("self_attn.q_proj", q, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, q),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ];
        let vocabulary = vec![config.vocab_size, hidden];
        let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vocabulary.clone())];
        if !config.tie_word_embeddings {
            tensors.push(("lm_head.weight".to_owned(), vocabulary));
        }
        for layer in 0..config.num_layers {
            let mut add = |name: &str, shape: &[usize]| {
                tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            for (name, out, width) in matrices {
                add(&format!("{name}.weight"), &[out, width]);
                if config.attention_bias && name.starts_with("self_attn") {
                    add(&format!("{name}.bias"), &[out]);
                }
            }
            if head_norms {
                ["q_norm", "k_norm"].iter().for_each(|norm| add(&format!("self_attn.{norm}.weight"), &[dim]));
            }
            add("input_layernorm.weight", &[hidden]);
            add("post_attention_layernorm.weight", &[hidden]);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors
    }

    /// Loads a model with Llama's tensor names; `head_norms` as [`Attention::load`] takes it.
    ///
    /// # Errors
    /// As [`Loader::linear`], and what allocation returns.
    pub fn load(
        config: &ModelConfig,
        loader: &mut Loader<'_>,
        device: &dyn Device,
        limits: Limits,
        head_norms: bool,
    ) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // The largest tensors come first: see `Loader`.
        let embedding = loader.linear(&[("model.embed_tokens".to_owned(), vocab)], hidden, false)?;
        let head = match config.tie_word_embeddings {
            true => None,
            false => Some(loader.linear(&[("lm_head".to_owned(), vocab)], hidden, false)?),
        };
        let layer = |index| DecoderLayer::load(loader, config, &format!("model.layers.{index}"), head_norms);
        let layers = (0..config.num_layers).map(layer).collect::<Result<_>>()?;
        let activations = Activations::new(device, config, embedding.dtype, limits)?;
        Ok(Self {
            embedding,
            head,
            layers,
            final_norm: Norm::load(loader, config, "model.norm")?,
            rope: RopeTable::new(device, config.rope_theta, config.head_dim, config.max_positions)?,
            activations,
            config: config.clone(),
        })
    }
}

impl Model for Decoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn attention(&self, kv_dtype: DType) -> Vec<AttentionParams> {
        let config = &self.config;
        let params = AttentionParams::new(config.num_qo_heads, config.num_kv_heads, config.head_dim);
        vec![params.dtypes(DType::F32, kv_dtype)]
    }

    fn forward(&mut self, cx: &mut Forward<'_>) -> Result<()> {
        let (device, act) = (cx.device, &mut self.activations);
        let positions = cx.batch.positions.iter().max().map_or(0, |&last| last as usize + 1);
        self.rope.reserve(device, positions)?;
        act.begin(device, cx.batch)?;
        device.embed(&self.embedding, cx.ids.unwrap_or(&act.ids), &mut act.hidden)?;
        // Of the last layer, nobody but attention sees other rows. In a decode step there are none, and completions that
        // begin ask for the same row each.
        let asked = cx.batch.asked_rows().filter(|rows| rows.len() < act.hidden.rows());
        for (index, (layer, kv)) in self.layers.iter().zip(&mut cx.kv.layers).enumerate() {
            let (plan, rope) = (&cx.plans[0], self.rope.table());
            let rows = asked.filter(|_| index + 1 == self.layers.len());
            layer.forward(&mut LayerCx { device, plan, rope, kv, activations: &mut *act }, rows)?;
        }
        Ok(())
    }

    fn logits(&mut self, device: &dyn Device, rows: &[u32]) -> Result<&mut Tensor> {
        let act = &mut self.activations;
        act.begin_logits(rows.len())?;
        if !rows.is_empty() {
            let is_all = match act.narrowed() {
                None => rows.iter().copied().eq(0..act.hidden.rows() as u32),
                Some(narrowed) if narrowed == rows => true,
                Some(narrowed) => {
                    let why = format!("rows {rows:?}, where the batch has gone on with {narrowed:?}");
                    return Err(tilewise::Error::Shape { op: "logits", why }.into());
                }
            };
            let last = if is_all {
                &act.hidden
            } else {
                device.gather_rows(&act.hidden, rows, &mut act.last)?;
                &act.last
            };
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            device.norm_linear(&self.final_norm.of(last), &mut act.last_normed, head, &mut act.logits)?;
        }
        Ok(&mut act.logits)
    }
}

//! A stack of pre-norm layers between an embedding and an output matrix.

use tilewise::{AttentionParams, DType, Device, Linear, Tensor};

use super::{Activations, Attention, FeedForward, LayerCx, Limits, RopeTable};
use crate::Result;
use crate::model::{Forward, Loader, Model, ModelConfig};

/// Attention and feed-forward, each after a norm and each added to the residual stream.
pub struct DecoderLayer {
    attention_norm: Tensor,
    attention: Attention,
    feed_forward_norm: Tensor,
    feed_forward: FeedForward,
    eps: f32,
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
        let hidden = config.hidden_size;
        Ok(Self {
            attention_norm: loader.vector(&format!("{prefix}.input_layernorm.weight"), hidden)?,
            attention: Attention::load(loader, config, &format!("{prefix}.self_attn"), head_norms)?,
            feed_forward_norm: loader.vector(&format!("{prefix}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::load(loader, config, &format!("{prefix}.mlp"))?,
            eps: config.rms_norm_eps,
        })
    }

    /// Runs the layer on the residual stream.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn forward(&self, cx: &mut LayerCx<'_>) -> Result<()> {
        let act = &mut *cx.activations;
        cx.device.rms_norm(&act.hidden, &self.attention_norm, self.eps, &mut act.normed)?;
        self.attention.forward(cx)?;
        let act = &mut *cx.activations;
        cx.device.rms_norm(&act.hidden, &self.feed_forward_norm, self.eps, &mut act.normed)?;
        self.feed_forward.forward(cx)
    }
}

/// A decoder whose layers all attend alike.
pub struct Decoder {
    config: ModelConfig,
    embedding: Linear,
    /// `None` where the embedding is the output matrix too.
    head: Option<Linear>,
    layers: Vec<DecoderLayer>,
    final_norm: Tensor,
    rope: RopeTable,
    activations: Activations,
}

impl Decoder {
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
            final_norm: loader.vector("model.norm.weight", hidden)?,
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
        device.embed(&self.embedding, &act.ids, &mut act.hidden)?;
        for (layer, kv) in self.layers.iter().zip(&mut cx.kv.layers) {
            let (plan, rope) = (&cx.plans[0], self.rope.table());
            layer.forward(&mut LayerCx { device, plan, rope, kv, activations: &mut *act })?;
        }
        Ok(())
    }

    fn logits(&mut self, device: &dyn Device, rows: &[u32]) -> Result<&mut Tensor> {
        let act = &mut self.activations;
        act.begin_logits(rows.len())?;
        if !rows.is_empty() {
            device.gather_rows(&act.hidden, rows, &mut act.last)?;
            device.rms_norm(&act.last, &self.final_norm, self.config.rms_norm_eps, &mut act.last_normed)?;
            let head = self.head.as_ref().unwrap_or(&self.embedding);
            device.linear(head, &act.last_normed, &mut act.logits)?;
        }
        Ok(&mut act.logits)
    }
}

//! Self-attention over the paged cache.

use tilewise::{HeadSpan, Kv, Linear, RotaryHeads, Tensor};

use super::{LayerCx, Norm};
use crate::Result;
use crate::model::{Loader, ModelConfig};

/// Queries, keys and values in one product; optional norms of query and key heads; rotary positions.
pub struct Attention {
    qkv: Linear,
    out: Linear,
    head_norms: Option<(Tensor, Tensor)>,
    queries: HeadSpan,
    keys: HeadSpan,
    values: HeadSpan,
    eps: f32,
}

impl Attention {
    /// Loads `{prefix}.{q,k,v,o}_proj`, and `{prefix}.{q,k}_norm` if `head_norms` is set.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn load(
        loader: &mut Loader<'_>,
        config: &ModelConfig,
        prefix: &str,
        head_norms: bool,
    ) -> Result<Self> {
        let head_dim = config.head_dim;
        let span = |offset, num_heads| HeadSpan { offset, num_heads, head_dim };
        let (q_width, kv_width) = (config.num_qo_heads * head_dim, config.num_kv_heads * head_dim);
        let part = |name: &str, out| (format!("{prefix}.{name}_proj"), out);
        let parts = [part("q", q_width), part("k", kv_width), part("v", kv_width)];
        let mut norm = |name| loader.vector(&format!("{prefix}.{name}_norm.weight"), head_dim);
        let head_norms = if head_norms { Some((norm("q")?, norm("k")?)) } else { None };
        Ok(Self {
            qkv: loader.linear(&parts, config.hidden_size, config.attention_bias)?,
            out: loader.linear(&[part("o", config.hidden_size)], q_width, config.attention_bias)?,
            head_norms,
            queries: span(0, config.num_qo_heads),
            keys: span(q_width, config.num_kv_heads),
            values: span(q_width + kv_width, config.num_kv_heads),
            eps: config.rms_norm_eps,
        })
    }

    /// Computes the heads of the residual stream's norm, and adds its keys and values to the cache.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn attend(&self, cx: &mut LayerCx<'_>, norm: &Norm) -> Result<()> {
        let (device, act) = (cx.device, &mut *cx.activations);
        device.norm_linear(&norm.of(&act.hidden), &mut act.normed, &self.qkv, &mut act.qkv)?;
        let heads = RotaryHeads {
            queries: self.queries,
            keys: self.keys,
            values: self.values,
            norms: self.head_norms.as_ref().map(|(queries, keys)| (queries, keys)),
            eps: self.eps,
            table: cx.rope,
            positions: &act.positions,
        };
        device.append_rotated(cx.plan, &mut act.qkv, &heads, cx.kv)?;
        let queries = self.queries.view(&act.qkv)?;
        device.attention(cx.plan, queries, Kv::Paged(cx.kv), &mut act.heads, None)?;
        Ok(())
    }

    /// Adds what the heads give to the residual stream.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn project(&self, cx: &mut LayerCx<'_>) -> Result<()> {
        let (device, act) = (cx.device, &mut *cx.activations);
        device.linear_add(&self.out, &act.heads, &mut act.hidden)?;
        Ok(())
    }
}

//! Self-attention over the paged cache.

use tilewise::{HeadSpan, Kv, Linear, Tensor, TokenView};

use super::LayerCx;
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

    /// Adds attention of the normed stream to the residual stream, and its keys and values to the cache.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn forward(&self, cx: &mut LayerCx<'_>) -> Result<()> {
        let (device, act) = (cx.device, &mut *cx.activations);
        device.linear(&self.qkv, &act.normed, &mut act.qkv)?;
        if let Some((q_norm, k_norm)) = &self.head_norms {
            device.rms_norm_heads(&mut act.qkv, self.queries, q_norm, self.eps)?;
            device.rms_norm_heads(&mut act.qkv, self.keys, k_norm, self.eps)?;
        }
        device.rope(&mut act.qkv, self.queries, cx.rope, &act.positions)?;
        device.rope(&mut act.qkv, self.keys, cx.rope, &act.positions)?;
        let view = |span: HeadSpan| TokenView::columns(&act.qkv, span.offset, span.num_heads, span.head_dim);
        device.append_kv(cx.plan, view(self.keys)?, view(self.values)?, cx.kv)?;
        device.attention(cx.plan, view(self.queries)?, Kv::Paged(cx.kv), &mut act.heads, None)?;
        device.linear_add(&self.out, &act.heads, &mut act.hidden)?;
        Ok(())
    }
}

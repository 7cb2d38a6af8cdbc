//! The gated feed-forward layer.

use tilewise::Linear;

use super::LayerCx;
use crate::Result;
use crate::model::{Loader, ModelConfig};

/// `down(silu(gate x) * up x)`, gate and up in one product.
pub struct FeedForward {
    gate_up: Linear,
    down: Linear,
}

impl FeedForward {
    /// Loads `{prefix}.{gate,up,down}_proj`.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn load(loader: &mut Loader<'_>, config: &ModelConfig, prefix: &str) -> Result<Self> {
        let part = |name: &str, out| (format!("{prefix}.{name}_proj"), out);
        let inner = config.intermediate_size;
        Ok(Self {
            gate_up: loader.linear(&[part("gate", inner), part("up", inner)], config.hidden_size, false)?,
            down: loader.linear(&[part("down", config.hidden_size)], inner, false)?,
        })
    }

    /// Adds the layer of the normed stream to the residual stream.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn forward(&self, cx: &mut LayerCx<'_>) -> Result<()> {
        let (device, act) = (cx.device, &mut *cx.activations);
        device.linear_silu_mul(&self.gate_up, &act.normed, &mut act.gate_up, &mut act.inner)?;
        device.linear_add(&self.down, &act.inner, &mut act.hidden)?;
        Ok(())
    }
}

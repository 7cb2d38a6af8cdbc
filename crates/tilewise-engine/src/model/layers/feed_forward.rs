//! The gated feed-forward layer.

use tilewise::Linear;

use super::{LayerCx, Norm};
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

    /// Adds the layer of the residual stream's norm to that stream.
    ///
    /// # Errors
    /// What the device's operations return.
    pub fn forward(&self, cx: &mut LayerCx<'_>, norm: &Norm) -> Result<()> {
        let (device, act) = (cx.device, &mut *cx.activations);
        let rows = norm.of(&act.hidden);
        let (normed, gate_up) = (&mut act.normed, &mut act.gate_up);
        device.norm_linear_silu_mul(&rows, normed, &self.gate_up, gate_up, &mut act.inner)?;
        device.linear_add(&self.down, &act.inner, &mut act.hidden)?;
        Ok(())
    }
}

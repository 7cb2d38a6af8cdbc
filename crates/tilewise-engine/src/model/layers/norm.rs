//! The norm before a product.

use tilewise::{NormedRows, Tensor};

use crate::Result;
use crate::model::{Loader, ModelConfig};

/// An RMS norm of the residual stream, which products take together with their matrix.
pub struct Norm {
    weight: Tensor,
    eps: f32,
}

impl Norm {
    /// Loads `{name}.weight`.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn load(loader: &mut Loader<'_>, config: &ModelConfig, name: &str) -> Result<Self> {
        let weight = loader.vector(&format!("{name}.weight"), config.hidden_size)?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    /// Rows, to be normed.
    pub fn of<'a>(&'a self, x: &'a Tensor) -> NormedRows<'a> {
        NormedRows { x, weight: &self.weight, eps: self.eps }
    }
}

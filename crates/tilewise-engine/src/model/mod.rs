//! Models: configuration, weights and the forward pass.

mod config;
pub mod families;
mod files;
pub mod hub;
pub mod layers;
mod source;
mod weights;

use tilewise::{AttentionParams, AttentionPlan, DType, Device, KvCache, Tensor};

pub use config::{ModelConfig, SamplingDefaults};
pub use families::{FAMILIES, Family};
pub use source::{EmbeddedModel, ModelSource};
pub(crate) use weights::weight_files;
pub use weights::{Loader, Progress, Report, TensorInfo, Weights, unwatched};

use crate::Result;
use crate::scheduler::BatchPlan;

/// What a forward pass works on.
pub struct Forward<'a> {
    /// Runs the operations.
    pub device: &'a dyn Device,
    /// The tokens.
    pub batch: &'a BatchPlan,
    /// Their ids, where the host does not know them: those of the batch mean nothing then.
    pub ids: Option<&'a Tensor>,
    /// The attention of this batch, in the order of [`Model::attention`].
    pub plans: &'a [AttentionPlan],
    /// The keys and values so far; those of the new tokens are appended.
    pub kv: &'a mut KvCache,
}

/// A model whose weights are on a device.
pub trait Model: Send {
    /// Its sizes.
    fn config(&self) -> &ModelConfig;

    /// The arithmetic of each distinct kind of attention layer.
    fn attention(&self, kv_dtype: DType) -> Vec<AttentionParams>;

    /// Runs a batch through all layers: its keys and values are in the cache then.
    ///
    /// # Errors
    /// What the device's operations return.
    fn forward(&mut self, cx: &mut Forward<'_>) -> Result<()>;

    /// The logits after some tokens of the batch that ran last, `[rows.len(), vocab_size]`, which the caller may change:
    /// at most as many as the model was made for, and those of [`BatchPlan::asked_rows`] where there are such.
    ///
    /// # Errors
    /// What the device's operations return.
    fn logits(&mut self, device: &dyn Device, rows: &[u32]) -> Result<&mut Tensor>;
}

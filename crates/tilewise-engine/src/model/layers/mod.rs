//! What decoders are made of.

mod activations;
mod attention;
mod decoder;
mod feed_forward;
mod norm;
mod rope;

pub use activations::{Activations, Limits};
pub use attention::Attention;
pub use decoder::{Decoder, DecoderLayer};
pub use feed_forward::FeedForward;
pub use norm::Norm;
pub use rope::RopeTable;

use tilewise::{AttentionPlan, Device, KvLayer, Tensor};

/// What one layer works on.
pub struct LayerCx<'a> {
    /// Runs the operations.
    pub device: &'a dyn Device,
    /// The attention of this batch.
    pub plan: &'a AttentionPlan,
    /// Cosines and sines of every position.
    pub rope: &'a Tensor,
    /// This layer's keys and values.
    pub kv: &'a mut KvLayer,
    /// The residual stream and the tensors between.
    pub activations: &'a mut Activations,
}

//! Qwen3, dense: Llama's layers with norms of the query and key heads (Qwen Team 2025, arXiv 2505.09388).

use super::Family;
use crate::model::layers::Decoder;

pub(super) const FAMILY: Family = Family {
    architecture: "Qwen3ForCausalLM",
    model_type: "qwen3",
    tensors: |config| Decoder::tensors(config, true),
    load: |config, loader, device, limits| Ok(Box::new(Decoder::load(config, loader, device, limits, true)?)),
};

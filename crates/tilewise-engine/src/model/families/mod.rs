//! The architectures there are. A family is a file here and a row of [`FAMILIES`].

mod qwen3;

use tilewise::Device;

use crate::Result;
use crate::model::layers::Limits;
use crate::model::{Loader, Model, ModelConfig};

/// Loads a model.
pub type Load = fn(&ModelConfig, &mut Loader<'_>, &dyn Device, Limits) -> Result<Box<dyn Model>>;

/// Names and shapes of the tensors that a model has.
pub type Tensors = fn(&ModelConfig) -> Vec<(String, Vec<usize>)>;

/// Builds models of one architecture.
#[derive(Debug)]
pub struct Family {
    /// Its name in `config.json`.
    pub architecture: &'static str,
    /// The `model_type` that goes with it.
    pub model_type: &'static str,
    /// The tensors that loading asks for.
    pub tensors: Tensors,
    /// Loads a model.
    pub load: Load,
}

/// All families.
pub static FAMILIES: &[Family] = &[qwen3::FAMILY];

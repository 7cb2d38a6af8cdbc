//! The model inside the program: `models/demo` of the repository, which says how it was trained.

use tilewise_engine::model::EmbeddedModel;

macro_rules! demo {
    ($include:ident, $file:literal) => {
        $include!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo/", $file))
    };
}

/// A small Qwen3 model that knows Python.
pub(crate) const DEMO: EmbeddedModel = EmbeddedModel {
    name: "the embedded model",
    config: demo!(include_str, "config.json"),
    generation_config: demo!(include_str, "generation_config.json"),
    weights: demo!(include_bytes, "model.safetensors"),
    tokenizer: demo!(include_bytes, "tokenizer.json"),
    tokenizer_config: demo!(include_str, "tokenizer_config.json"),
};

/// A smaller one that guesses what it says.
pub(crate) const DRAFT: EmbeddedModel = EmbeddedModel {
    name: "the embedded draft model",
    config: demo!(include_str, "draft/config.json"),
    generation_config: demo!(include_str, "draft/generation_config.json"),
    weights: demo!(include_bytes, "draft/model.safetensors"),
    ..DEMO
};

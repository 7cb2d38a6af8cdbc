//! Names of tensors, which depend on the class that a model was saved by.

use std::collections::BTreeMap;

/// The embedding, as all families here name it.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output matrix.
pub(super) const HEAD: &str = "lm_head.weight";

/// Beginnings of the decoder's names in models that have more than a decoder, and in one that was saved without its head.
const PREFIXES: [&str; 4] = ["model.language_model.", "language_model.model.", "language_model.", ""];

/// Names the decoder's tensors as a model that is a decoder alone does, where a file names them otherwise.
pub(super) fn make_plain<T>(tensors: &mut BTreeMap<String, T>) {
    if tensors.contains_key(EMBEDDING) {
        return;
    }
    let own = EMBEDDING.trim_start_matches("model.");
    let Some(prefix) = PREFIXES.into_iter().find(|prefix| tensors.contains_key(&format!("{prefix}{own}")))
    else {
        return;
    };
    let plain = |name: String| match name.strip_prefix(prefix) {
        _ if name.ends_with(HEAD) => HEAD.to_owned(),
        Some(rest) => format!("model.{rest}"),
        None => name,
    };
    *tensors = std::mem::take(tensors).into_iter().map(|(name, entry)| (plain(name), entry)).collect();
}

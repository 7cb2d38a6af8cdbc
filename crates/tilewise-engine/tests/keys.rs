//! Keys of cached chunks: the vectors that others compute too, and what keys tell apart.

mod common;

use std::collections::BTreeSet;

use common::{model_folder, tiny_config};
use safetensors::tensor::Dtype;
use tilewise::{DType, KvCacheConfig, PageLayout};
use tilewise_engine::Error;
use tilewise_engine::cache::keys::{CHUNK_TOKENS, ChunkHash, KeySpace, ModelDigest, Namespace};
use tilewise_engine::model::ModelSource;

const ROOT: &str = "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b";
const FIRST: &str = "084547b6c40ed5b05ba8cd0305db5bf74d5617673948d9ed193ab7d6cbc484d4";
/// `tenant`, hashed with the key of the context "tilewise cache salt 1".
const TENANT: &str = "a67960c9368e366a213f82662a8493e190cd73bed9dcf362756e3888b7064b00";
const SECOND: &str = "e5ffee45c2b9db326814c9692dc594369887ba3b0df5761817820b60f864c8e0";

fn config() -> KvCacheConfig {
    KvCacheConfig {
        num_layers: 2,
        num_pages: 4,
        page_size: 32,
        num_kv_heads: 2,
        head_dim: 16,
        value_dim: 16,
        dtype: DType::F16,
    }
}

fn layout() -> PageLayout {
    PageLayout { name: "panels-16".to_owned(), dtype: DType::F16, bytes: config().page_bytes() }
}

fn namespace() -> Namespace {
    Namespace::new(&layout(), &config(), DType::Bf16, ModelDigest::from_bytes([7; 32]))
}

#[test]
fn hashes_of_chunks_are_the_known_ones() {
    let tokens: Vec<u32> = (0..512).collect();
    assert_eq!(ChunkHash::root().to_string(), ROOT);
    let chain: Vec<String> = ChunkHash::chain(&tokens).map(|hash| hash.to_string()).collect();
    assert_eq!(chain, [FIRST, SECOND]);
}

#[test]
fn keys_are_written_as_others_write_them() {
    let space = KeySpace::new(namespace(), "Qwen/Qwen3-0.6B").unwrap();
    let tokens: Vec<u32> = (0..256).collect();
    let name = |space: KeySpace, salt| space.keys(&tokens, salt)[0].name().to_owned();
    assert_eq!(name(space.clone(), None), format!("Qwen/Qwen3-0.6B@00000000@0@{FIRST}"));
    let ranked = space.clone().rank(0x1f).group(10);
    assert_eq!(name(ranked, Some("tenant")), format!("Qwen/Qwen3-0.6B@0000001f@a@{FIRST}@{TENANT}"));
    let hash = ChunkHash::chain(&tokens).next().unwrap();
    assert_eq!(space.key(hash, None), space.keys(&tokens, None)[0]);
}

#[test]
fn a_key_depends_on_every_token_up_to_its_chunks_end_and_on_none_after() {
    let tokens: Vec<u32> = (0..900).collect();
    let chain: Vec<ChunkHash> = ChunkHash::chain(&tokens).collect();
    assert_eq!(chain.len(), 3, "the tokens after the last whole chunk have no key");
    for changed in [0, 1, 255, 256, 511, 512, 767, 768, 899] {
        let mut other = tokens.clone();
        other[changed] ^= 1 << 31;
        let same = chain.iter().zip(ChunkHash::chain(&other)).take_while(|(a, b)| **a == *b).count();
        assert_eq!(same, (changed / CHUNK_TOKENS).min(3), "token {changed}");
    }
}

#[test]
fn what_makes_other_bytes_makes_another_namespace() {
    let digest = ModelDigest::from_bytes([7; 32]);
    let of = |layout: &PageLayout, config: &KvCacheConfig, weights, digest| {
        Namespace::new(layout, config, weights, digest).to_string()
    };
    let all = [
        namespace().to_string(),
        of(&PageLayout { name: "rows".to_owned(), ..layout() }, &config(), DType::Bf16, digest),
        of(&PageLayout { dtype: DType::Bf16, ..layout() }, &config(), DType::Bf16, digest),
        of(&layout(), &KvCacheConfig { page_size: 64, ..config() }, DType::Bf16, digest),
        of(&layout(), &config(), DType::F16, digest),
        of(&layout(), &config(), DType::Bf16, ModelDigest::from_bytes([8; 32])),
    ];
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:#?}");
    assert_eq!(namespace().chunk_bytes(), 256 / 32 * config().page_bytes());
}

#[test]
fn keys_with_other_salts_ranks_groups_and_models_differ() {
    let hash = ChunkHash::root();
    let space = |model| KeySpace::new(namespace(), model).unwrap();
    let keys = [
        space("a").key(hash, None),
        space("b").key(hash, None),
        space("a").rank(1).key(hash, None),
        space("a").group(1).key(hash, None),
        space("a").key(hash, Some("x")),
        space("a").key(hash, Some("y")),
    ];
    let digests: BTreeSet<[u8; 32]> = keys.iter().map(|key| key.digest()).collect();
    assert_eq!(digests.len(), keys.len(), "{keys:#?}");
}

#[test]
fn names_that_keys_cannot_carry_are_refused_by_name() {
    let long = "x".repeat(97);
    for bad in ["", "a@b", "a\nb", &long] {
        let error = KeySpace::new(namespace(), bad).unwrap_err();
        assert!(matches!(error, Error::Value { name: "model name", .. }), "{error:?}");
    }
}

#[test]
fn weights_that_differ_in_one_byte_are_another_model_and_the_same_files_are_not() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let digest = |folder: &std::path::Path| ModelDigest::of(&ModelSource::Folder(folder.to_owned())).unwrap();
    let before = digest(folder.path());
    let copy = model_folder(&tiny_config(), Dtype::BF16);
    assert_eq!(digest(copy.path()), before, "another folder with the same files");
    let weights = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    assert_ne!(digest(folder.path()), before, "one bit of the last weight");

    let config = copy.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + " ").unwrap();
    assert_ne!(digest(copy.path()), before, "the configuration");
    let dummy = ModelDigest::of(&ModelSource::Dummy(copy.path().to_owned())).unwrap();
    assert_ne!(dummy, digest(copy.path()), "random weights");

    let none = ModelSource::Folder(copy.path().join("none"));
    assert!(matches!(ModelDigest::of(&none), Err(Error::File { .. })));
}

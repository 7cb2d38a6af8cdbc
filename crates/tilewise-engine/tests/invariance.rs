//! What a request gets depends on its own tokens and parameters only: tokens and logprobs, in every bit.
#![allow(clippy::print_stdout)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{
    Outcome, gpus, model_folder, open, open_on, open_with_threads, prompts, run_all, run_completions,
    run_one, small, tiny_config,
};
use safetensors::tensor::Dtype;
use tilewise_engine::model::ModelSource;
use tilewise_engine::{
    DraftLength, Drafter, Engine, EngineConfig, GenerateRequest, KvBudget, Preemption, SamplingParams,
    Speculation,
};

const VOCAB: usize = 131;
const NEW_TOKENS: usize = 40;

/// Greedy and sampled requests of mixed lengths, some of which change their logits.
fn requests(count: usize) -> Vec<GenerateRequest> {
    let request = |(index, prompt): (usize, Vec<u32>)| GenerateRequest {
        sampling: match index % 5 {
            0 => SamplingParams { logprobs: true, ..SamplingParams::default() },
            1 => SamplingParams { temperature: 0.8, seed: 3, logprobs: true, ..SamplingParams::default() },
            2 => SamplingParams {
                temperature: 1.3,
                top_k: Some(20),
                top_p: 0.9,
                seed: 7,
                logprobs: true,
                ..SamplingParams::default()
            },
            3 => SamplingParams {
                repetition_penalty: 1.3,
                logit_bias: vec![(130, 4.0), (7, -100.0), (index as u32, 2.5)],
                logprobs: true,
                top_logprobs: 3,
                ..SamplingParams::default()
            },
            _ => SamplingParams {
                temperature: 1.1,
                min_p: 0.02 * index as f32,
                presence_penalty: -0.4,
                frequency_penalty: 0.3,
                seed: index as u64,
                logprobs: true,
                top_logprobs: index % 2 * 20,
                ..SamplingParams::default()
            },
        },
        ..GenerateRequest::new(prompt, NEW_TOKENS - index % 7)
    };
    prompts(count, VOCAB).into_iter().enumerate().map(request).collect()
}

/// Each request alone in an engine of its own.
fn alone(dtype: Dtype, requests: &[GenerateRequest]) -> Vec<Outcome> {
    let folder = model_folder(&tiny_config(), dtype);
    let mut engine = open(folder.path(), &small()).unwrap();
    let outcomes: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
    assert!(outcomes.iter().all(|outcome| outcome.logprob_bits.len() == outcome.tokens.len()));
    outcomes
}

#[track_caller]
fn assert_same(what: &str, got: &[Outcome], want: &[Outcome]) {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "{what}: request {index}");
    }
}

#[test]
fn a_batch_gives_the_bits_of_each_request_alone() {
    let requests = requests(16);
    for dtype in [Dtype::F32, Dtype::BF16] {
        let want = alone(dtype, &requests);
        let folder = model_folder(&tiny_config(), dtype);
        for batch in [2, 5, 16] {
            let mut engine = open(folder.path(), &small()).unwrap();
            let got: Vec<Outcome> =
                requests.chunks(batch).flat_map(|batch| run_all(&mut engine, batch)).collect();
            assert_same(&format!("{dtype:?}, batch {batch}"), &got, &want);
        }
    }
}

#[test]
fn any_chunk_page_size_and_thread_count_gives_the_same_bits() {
    let requests = requests(6);
    let want = alone(Dtype::BF16, &requests);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    for (max_batch_tokens, page_size, threads) in
        [(1, 32, 1), (7, 16, 2), (16, 64, 1), (33, 128, 2), (256, 16, 2)]
    {
        let config = EngineConfig { max_batch_tokens, page_size, ..small() };
        let mut engine = open_with_threads(folder.path(), &config, threads).unwrap();
        let got = run_all(&mut engine, &requests);
        assert_same(&format!("chunk {max_batch_tokens}, page {page_size}, {threads} threads"), &got, &want);
    }
}

#[test]
fn prompts_held_back_for_those_who_generate_change_no_bit() {
    let requests = requests(12);
    let want = alone(Dtype::F32, &requests);
    let folder = model_folder(&tiny_config(), Dtype::F32);
    for decode_slowdown in [1.01, 2.0, 1e6] {
        let config = EngineConfig { decode_slowdown: Some(decode_slowdown), max_running: 4, ..small() };
        let got = run_all(&mut open(folder.path(), &config).unwrap(), &requests);
        assert_same(&format!("slowdown {decode_slowdown}"), &got, &want);
    }
}

#[test]
fn a_gpu_gives_the_same_bits_in_any_batch_chunk_and_page_size() {
    for gpu in gpus() {
        let (count, new_tokens) = if gpu.software { (5, 6) } else { (16, NEW_TOKENS) };
        let mut requests = requests(count);
        requests.iter_mut().for_each(|request| request.max_new_tokens = new_tokens);
        for dtype in [Dtype::F32, Dtype::BF16] {
            let folder = model_folder(&tiny_config(), dtype);
            let mut engine = open_on(&gpu.device, folder.path(), &small()).unwrap();
            let want: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
            assert!(want.iter().all(|outcome| outcome.logprob_bits.len() == outcome.tokens.len()));
            for (max_batch_tokens, page_size) in [(256, 32), (17, 16), (64, 128)] {
                let config = EngineConfig { max_batch_tokens, page_size, ..small() };
                let mut engine = open_on(&gpu.device, folder.path(), &config).unwrap();
                engine.warm_up().unwrap();
                assert_eq!(engine.stats().free_tokens, engine.stats().total_tokens);
                let got = run_all(&mut engine, &requests);
                let what = format!("{} {dtype:?}, {max_batch_tokens} tokens, pages of {page_size}", gpu.name);
                assert_same(&what, &got, &want);
                // What the prefix cache holds now is not written over.
                engine.warm_up().unwrap();
                let again = run_all(&mut engine, &requests);
                assert_same(&format!("{what}, warmed up again"), &again, &want);
                assert!(page_size > 32 || engine.stats().prefix.hit_tokens > 0, "{what}");
            }
        }
        println!("{}: {count} requests of {new_tokens} new tokens", gpu.name);
    }
}

#[test]
fn preemption_changes_no_bit() {
    let requests = requests(12);
    let want = alone(Dtype::BF16, &requests);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    // The longest sequence takes 11 pages of 16: the pool holds little more.
    let config = EngineConfig { page_size: 16, kv: KvBudget::Tokens(12 * 16), ..small() };
    let mut engine = open(folder.path(), &config).unwrap();
    let got = run_all(&mut engine, &requests);
    assert!(engine.stats().preemptions > 0, "the pool was large enough for all");
    assert_same("a pool of 12 pages", &got, &want);
}

#[test]
fn a_cached_prefix_changes_no_bit() {
    let requests = requests(12);
    let want = alone(Dtype::BF16, &requests);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    for (page_size, max_batch_tokens) in [(16, 256), (32, 17)] {
        let config = EngineConfig { page_size, max_batch_tokens, ..small() };
        let mut engine = open(folder.path(), &config).unwrap();
        assert_same("cold", &run_all(&mut engine, &requests), &want);
        let cold = engine.stats().prefix.hit_tokens;
        assert_same("cached", &run_all(&mut engine, &requests), &want);
        let cached = |request: &GenerateRequest| (request.prompt.len() - 1) / page_size * page_size;
        let hit = (engine.stats().prefix.hit_tokens - cold) as usize;
        assert_eq!(hit, requests.iter().map(cached).sum::<usize>(), "all but the last page of each");
        engine.clear_prefix_cache();
        assert_same("cleared", &run_all(&mut engine, &requests), &want);
    }
}

#[test]
fn completions_have_the_same_bits_forked_or_not_and_the_first_is_that_of_one() {
    let one = requests(9);
    let many: Vec<GenerateRequest> =
        one.iter().map(|request| GenerateRequest { n: 5, ..request.clone() }).collect();
    let want = alone(Dtype::BF16, &one);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    // With one running sequence nothing is forked.
    let unforked = EngineConfig { max_running: 1, ..small() };
    let unforked = run_completions(&mut open(folder.path(), &unforked).unwrap(), &many);
    let firsts: Vec<Outcome> = unforked.iter().map(|completions| completions[0].clone()).collect();
    assert_same("completion 0", &firsts, &want);
    for (index, completions) in unforked.iter().enumerate() {
        let equal = completions.iter().filter(|outcome| *outcome == &completions[0]).count();
        let greedy = many[index].sampling.temperature == 0.0;
        assert_eq!(equal, if greedy { 5 } else { 1 }, "request {index}: greedy alone gives equal texts");
    }
    let tiny = KvBudget::Tokens(12 * 16);
    for (page_size, kv, prefix_cache) in
        [(32, small().kv, true), (16, small().kv, false), (16, tiny, true), (16, tiny, false)]
    {
        let config = EngineConfig { page_size, kv, prefix_cache, ..small() };
        let got = run_completions(&mut open(folder.path(), &config).unwrap(), &many);
        for (index, (got, want)) in got.iter().zip(&unforked).enumerate() {
            assert_same(&format!("{config:?}: request {index}"), got, want);
        }
    }
    for gpu in gpus() {
        let count = if gpu.software { 3 } else { 9 };
        let mut requests = many[..count].to_vec();
        if gpu.software {
            requests.iter_mut().for_each(|request| request.max_new_tokens = 4);
        }
        let unforked = EngineConfig { max_running: 1, ..small() };
        let want = run_completions(&mut open_on(&gpu.device, folder.path(), &unforked).unwrap(), &requests);
        let got = run_completions(&mut open_on(&gpu.device, folder.path(), &small()).unwrap(), &requests);
        for (got, want) in got.iter().zip(&want) {
            assert_same(&gpu.name, got, want);
        }
    }
}

#[test]
fn requests_that_join_and_leave_change_nobody_else() {
    let requests = requests(9);
    let want = alone(Dtype::BF16, &requests);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let mut engine = open(folder.path(), &small()).unwrap();
    let mut tokens = vec![Vec::new(); requests.len()];
    let mut ids = Vec::new();
    for step in 0.. {
        if step % 3 == 0 && ids.len() < requests.len() {
            ids.push(engine.submit(requests[ids.len()].clone()).unwrap());
        }
        // Request 4 is forgotten in the middle of its text, request 1 while it waits or prefills.
        if step == 13 {
            assert!(engine.abort(ids[4]));
        }
        if step == 3 {
            assert!(engine.abort(ids[1]));
            assert!(!engine.abort(ids[1]), "it is gone already");
        }
        if !engine.has_work() && ids.len() == requests.len() {
            break;
        }
        for event in engine.step().unwrap() {
            if let tilewise_engine::Event::Token { request, id, .. } = event {
                tokens[ids.iter().position(|&known| known == request).unwrap()].push(id);
            }
        }
    }
    for (index, (tokens, want)) in tokens.iter().zip(&want).enumerate() {
        match index {
            1 | 4 => assert!(tokens.len() < want.tokens.len() && want.tokens.starts_with(tokens)),
            _ => assert_eq!(tokens, &want.tokens, "request {index}"),
        }
    }
    assert_eq!(engine.stats().free_tokens, engine.stats().total_tokens);
}

#[test]
fn a_forced_kernel_runs_or_fails_by_name() {
    let folder = model_folder(&tiny_config(), Dtype::F32);
    let request = &requests(1)[0];
    let forced = |name: &str| EngineConfig { attention_kernel: Some(name.to_owned()), ..small() };
    let kernel = tilewise::open("cpu", Some(1)).unwrap().policy().kernels[0].name;
    let mut engine = open(folder.path(), &forced(kernel)).unwrap();
    assert_eq!(run_one(&mut engine, request).tokens.len(), NEW_TOKENS);
    let mut engine = open(folder.path(), &forced("no-such-kernel")).unwrap();
    engine.submit(request.clone()).unwrap();
    assert!(engine.step().unwrap_err().to_string().contains("no-such-kernel"));
}

/// One way to run requests of the demo model. None of its values may show in any bit.
#[derive(Debug, Clone, Copy)]
struct Way {
    batch: usize,
    cached: bool,
    chunk: usize,
    page_size: usize,
    memory: Memory,
    guesses: Guesses,
    threads: usize,
}

/// What sequences that run together have to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Enough for all.
    Enough,
    /// So little that the second gives way to the first, and is computed again or saved and restored.
    Little(Preemption),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guesses {
    None,
    /// With branches.
    Lookup,
    Model,
}

/// Tokens of the first two prompts, which cross a boundary of pages of every size while both generate.
const LONGEST: [usize; 2] = [246, 126];

fn demo() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

/// The text that was kept from the demo model when it learned.
fn heldout() -> Vec<u32> {
    let text = std::fs::read_to_string(demo().join("heldout.txt")).unwrap();
    ModelSource::Folder(demo()).tokenizer().unwrap().encode(&text, false).unwrap()
}

/// Parts of a text, to be continued in all the ways of [`requests`].
fn continuations(count: usize, text: &[u32]) -> Vec<GenerateRequest> {
    let request = |(index, request): (usize, GenerateRequest)| {
        let length = LONGEST.get(index).copied().unwrap_or(3 + index * 17 % 50);
        GenerateRequest {
            prompt: text.iter().copied().skip(index * 400).take(length).collect(),
            max_new_tokens: if index < LONGEST.len() { 32 } else { 14 },
            ignore_eos: true,
            ..request
        }
    };
    requests(count).into_iter().enumerate().map(request).collect()
}

impl Way {
    fn any(random: &mut u64, batch: usize) -> Self {
        let mut below = |count: usize| {
            *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*random >> 33) as usize % count
        };
        let swap = Preemption::Swap { bytes: 1 << 30 };
        let memory = [Memory::Enough, Memory::Little(Preemption::Recompute), Memory::Little(swap)];
        Self {
            batch,
            cached: below(2) == 1,
            chunk: [20, 33, 100, 512][below(4)],
            page_size: [16, 32, 64, 128][below(4)],
            // Who runs alone gives way to nobody.
            memory: memory[if batch == 1 { 0 } else { below(3) }],
            guesses: [Guesses::None, Guesses::Lookup, Guesses::Model][below(3)],
            threads: 1 + below(2),
        }
    }

    /// `draft` is the model that guesses.
    fn config(&self, draft: &Path) -> EngineConfig {
        let pages = |tokens: usize| tokens.div_ceil(self.page_size);
        let drafter = match self.guesses {
            Guesses::None => None,
            Guesses::Lookup => Some(Drafter::PromptLookup),
            Guesses::Model => Some(Drafter::Model(ModelSource::Folder(draft.to_owned()))),
        };
        let branches = if self.guesses == Guesses::Lookup { 3 } else { 1 };
        let speculation = drafter.map(|drafter| Speculation {
            drafter,
            max_drafts: 3,
            length: DraftLength::Fixed,
            branches,
        });
        let config =
            EngineConfig { page_size: self.page_size, max_batch_tokens: self.chunk, speculation, ..small() };
        match self.memory {
            Memory::Enough => config,
            Memory::Little(preemption) => {
                // One page less than the first two need in the end.
                let pages = LONGEST.iter().map(|&prompt| pages(prompt)).sum::<usize>() + 1;
                EngineConfig { kv: KvBudget::Tokens(pages * self.page_size), preemption, ..config }
            }
        }
    }

    /// Runs the first requests together and holds them to what each gave alone. Returns what really happened, an axis after
    /// the other.
    fn check(&self, engine: &mut Engine, requests: &[GenerateRequest], want: &[Outcome]) -> Vec<String> {
        if self.cached {
            assert_same(&format!("{self:?}, cold"), &[run_one(engine, &requests[0])], &want[..1]);
        }
        let before = engine.stats();
        let got = run_all(engine, &requests[..self.batch]);
        assert_same(&format!("{self:?}"), &got, &want[..self.batch]);
        let stats = engine.stats();
        assert_eq!(stats.preemptions == 0, self.memory == Memory::Enough, "{self:?}: {stats:?}");
        let cached = (requests[0].prompt.len() - 1) / self.page_size * self.page_size;
        let hits = (stats.prefix.hit_tokens - before.prefix.hit_tokens) as usize;
        assert!(!self.cached || hits >= cached, "{self:?}: {hits} tokens were cached");
        let guessed = stats.speculation.accepted > before.speculation.accepted;
        vec![
            format!("batch {}", self.batch),
            (if self.cached { "cached" } else { "cold" }).to_owned(),
            format!("chunks of {}", self.chunk),
            format!("pages of {}", self.page_size),
            match (stats.swap.restored_pages, stats.preemptions) {
                (0, 0) => "not preempted",
                (0, _) => "preempted",
                _ => "swapped",
            }
            .to_owned(),
            format!("{:?} guessed right", if guessed { self.guesses } else { Guesses::None }),
            format!("{} threads", self.threads),
        ]
    }
}

/// Counts the values that were seen, and those of the pairs of any two axes but the first.
fn tell(name: &str, seen: &[Vec<String>]) -> (usize, usize) {
    let (mut values, mut pairs) = (BTreeSet::new(), BTreeSet::new());
    for way in seen {
        values.extend(way.iter());
        for (index, value) in way.iter().enumerate().skip(1) {
            pairs.extend(way[1..index].iter().map(|other| (other, value)));
        }
    }
    println!("{name}: {} ways, {} pairs of {values:?}", seen.len(), pairs.len());
    (values.len(), pairs.len())
}

#[test]
fn no_batch_prefix_chunk_page_size_preemption_swap_draft_and_thread_count_changes_a_bit_of_the_demo_model() {
    let (demo, requests) = (demo(), continuations(16, &heldout()));
    let mut engine = open(&demo, &small()).unwrap();
    let want: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
    let (mut random, mut seen) = (4743, Vec::new());
    for _ in 0..3 {
        for batch in 1..=16 {
            let way = Way::any(&mut random, batch);
            let config = way.config(&demo.join("draft"));
            let mut engine = open_with_threads(&demo, &config, way.threads).unwrap();
            seen.push(way.check(&mut engine, &requests, &want));
        }
    }
    // The ways are a sample by seed in which every value occurs, and every pair of values of two axes but the batch.
    let (sizes, batches) = ([2, 4, 4, 3, 3, 2], 16);
    let all: usize = sizes.iter().sum();
    let squares: usize = sizes.iter().map(|size| size * size).sum();
    assert_eq!(tell("cpu", &seen), (batches + all, (all * all - squares) / 2));
}

#[test]
fn nothing_of_it_changes_a_bit_on_a_gpu() {
    let tiny = model_folder(&tiny_config(), Dtype::BF16);
    for gpu in gpus() {
        // A software GPU takes minutes for the demo model.
        let (model, draft) = match gpu.software {
            true => (tiny.path().to_owned(), tiny.path().to_owned()),
            false => (demo(), demo().join("draft")),
        };
        let text = if gpu.software { (0..2000).map(|i| i * i % 13).collect() } else { heldout() };
        let count = if gpu.software { 3 } else { 16 };
        let requests = continuations(count, &text);
        let mut engine = open_on(&gpu.device, &model, &small()).unwrap();
        let want: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
        let (mut random, mut seen) = (5, Vec::new());
        for _ in 0..3 {
            for batch in 1..=count {
                let way = Way { threads: 1, ..Way::any(&mut random, batch) };
                let mut engine = open_on(&gpu.device, &model, &way.config(&draft)).unwrap();
                seen.push(way.check(&mut engine, &requests, &want));
            }
        }
        let (values, _) = tell(&gpu.name, &seen);
        assert_eq!(values, count + 2 + 4 + 4 + 3 + 3 + 1, "{seen:?}");
    }
}

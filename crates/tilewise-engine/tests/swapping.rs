//! Sequences that give way, whose pages are kept in the host's memory until they come back.
#![allow(clippy::print_stdout)]

mod common;

use common::{Outcome, gpus, model_folder, open, open_on, prompts, run_all, run_one, small, tiny_config};
use safetensors::tensor::Dtype;
use tilewise::Sampled;
use tilewise_engine::cache::PagePool;
use tilewise_engine::model::ModelSource;
use tilewise_engine::scheduler::{BatchPlan, Priority, Scheduler, SchedulerConfig, SwapStats, SwappedPages};
use tilewise_engine::{
    DraftLength, Drafter, EngineConfig, GenerateRequest, KvBudget, Preemption, RequestId, SamplingParams,
    Speculation,
};

const PAGE: usize = 16;

struct Bench {
    scheduler: Scheduler,
    pages: PagePool,
}

impl Bench {
    fn new(num_pages: usize, swap_pages: usize, prefix_cache: bool) -> Self {
        let config = SchedulerConfig {
            max_batch_tokens: 1000,
            max_running: 8,
            page_size: PAGE,
            max_context: 1000,
            max_drafts: 0,
            priority: Priority::Decode,
            prefix_cache,
            swap_pages,
        };
        Self { scheduler: Scheduler::new(config), pages: PagePool::new(num_pages) }
    }

    fn submit(&mut self, request: GenerateRequest) -> RequestId {
        self.scheduler.submit(request, &self.pages).unwrap()
    }

    fn schedule(&mut self) -> BatchPlan {
        self.scheduler.schedule(&mut self.pages).expect("there is something to do")
    }

    fn commit(&mut self, batch: &BatchPlan) {
        let drawn = |row| Ok(Sampled { id: 5 + row, logprob: None });
        let sampled: Vec<_> = (0..batch.logits_rows.len() as u32).map(drawn).collect();
        self.scheduler.commit(batch, &sampled, &mut self.pages, &mut |_, _| None);
    }

    fn step(&mut self) -> BatchPlan {
        let batch = self.schedule();
        self.commit(&batch);
        batch
    }

    /// The first batch with a sequence in it, which is not committed.
    fn until(&mut self, request: RequestId) -> BatchPlan {
        for _ in 0..100 {
            let batch = self.schedule();
            if batch.sequences.iter().any(|sequence| sequence.request == request) {
                return batch;
            }
            self.commit(&batch);
        }
        panic!("request {request} does not come back");
    }
}

/// An old sequence that takes all four pages in the end, and a young one that gives way: it has computed 17 tokens, and
/// the batch is the one that saves them.
fn young_one_gives_way(swap_pages: usize) -> (Bench, RequestId, BatchPlan) {
    let mut bench = Bench::new(4, swap_pages, true);
    bench.submit(GenerateRequest::new(vec![1; 28], 36));
    let young = bench.submit(GenerateRequest::new(vec![2; 14], 20));
    for _ in 0..5 {
        assert_eq!(bench.step().sequences.len(), 2);
    }
    let batch = bench.schedule();
    assert_eq!((batch.sequences.len(), bench.scheduler.num_preemptions()), (1, 1));
    (bench, young, batch)
}

#[test]
fn a_sequence_that_comes_back_computes_nothing_again() {
    let (mut bench, young, batch) = young_one_gives_way(2);
    let [SwappedPages { of, first: 0, pages }] = &batch.saves[..] else { panic!("{:?}", batch.saves) };
    assert_eq!((*of, pages.len()), ((young, 0), 2));
    assert_eq!(bench.scheduler.num_swapped_pages(), 2);
    bench.commit(&batch);
    let batch = bench.until(young);
    assert_eq!((&batch.token_ids[..], &batch.positions[..]), (&[6][..], &[18][..]));
    let [SwappedPages { of, first: 0, pages }] = &batch.restores[..] else { panic!("{:?}", batch.restores) };
    assert_eq!(
        (*of, pages.iter().map(|page| page.0).collect()),
        ((young, 0), batch.layout.pages(0).to_vec())
    );
    // A step that failed is repeated with what it restores.
    let batch = bench.schedule();
    assert_eq!((batch.restores.len(), bench.scheduler.num_swapped_pages()), (1, 2));
    bench.commit(&batch);
    assert_eq!(bench.scheduler.swap_stats(), SwapStats { saved_pages: 2, restored_pages: 2 });
    assert_eq!((bench.scheduler.num_swapped_pages(), bench.step().restores.len()), (0, 0));
}

#[test]
fn what_there_is_no_room_for_or_what_a_failed_step_was_to_save_is_computed_again() {
    for swap_pages in [1, 2] {
        let (mut bench, young, mut batch) = young_one_gives_way(swap_pages);
        assert_eq!(batch.saves.len(), swap_pages / 2);
        if swap_pages == 2 {
            batch = bench.schedule();
            assert_eq!(batch.saves, []);
        }
        bench.commit(&batch);
        let batch = bench.until(young);
        assert_eq!((batch.token_ids.len(), batch.restores.len()), (19, 0));
        assert_eq!(bench.scheduler.swap_stats(), SwapStats::default());
    }
}

#[test]
fn an_abort_frees_what_was_saved() {
    let (mut bench, young, batch) = young_one_gives_way(2);
    bench.commit(&batch);
    assert!(bench.scheduler.abort(young, &mut bench.pages));
    assert_eq!((bench.scheduler.num_swapped_pages(), bench.scheduler.swapped().len()), (0, 0));
}

#[test]
fn a_sequence_saves_what_it_does_not_share_but_all_where_nobody_could_find_it() {
    for (prefix_cache, saved) in [(true, 1), (false, 3)] {
        let mut bench = Bench::new(8, 100, prefix_cache);
        bench.submit(GenerateRequest { n: 2, ..GenerateRequest::new(vec![1; 32], 33) });
        (0..17).for_each(|_| drop(bench.step()));
        // Each has written a page of its own behind the two that they share, and there is one left for both.
        let mut taken = Vec::new();
        assert!(bench.pages.allocate(bench.pages.num_free() - 1, &mut taken));
        let batch = bench.schedule();
        assert_eq!(batch.saves.iter().map(|save| save.pages.len()).collect::<Vec<_>>(), [saved]);
        bench.pages.release(taken);
    }
}

/// A prompt of two chunks, and one that begins alike and has no whole chunk.
fn alike() -> (GenerateRequest, GenerateRequest) {
    let long: Vec<u32> = (0..530).map(|i| i * 7 % 991).collect();
    (GenerateRequest::new(long.clone(), 2), GenerateRequest::new(long[..200].to_vec(), 2))
}

#[test]
fn where_the_tree_has_more_than_was_saved_nothing_is_restored() {
    let mut bench = Bench::new(60, 100, true);
    bench.scheduler.use_chunks();
    let old = bench.submit(GenerateRequest::new(vec![1; 16], 40));
    let (long, short) = alike();
    let (late, early) = (bench.submit(long), bench.submit(short));
    // One waits for chunks, and the next one overtakes it.
    assert_eq!(bench.scheduler.next_prefetch(&mut bench.pages).unwrap().of, (late, 0));
    bench.scheduler.set_max_batch_tokens(16 + 40);
    assert_eq!(bench.step().sequences.iter().map(|s| s.request).collect::<Vec<_>>(), [old, early]);
    let mut taken = Vec::new();
    assert!(bench.pages.allocate(bench.pages.num_free(), &mut taken));
    let batch = bench.step();
    assert_eq!((batch.saves[0].of, batch.saves[0].pages.len()), ((early, 0), 3));
    bench.pages.release(taken);
    bench.scheduler.end_prefetch((late, 0));
    // The late one finds two full pages of the early one, and leaves it no room in its step.
    bench.scheduler.set_max_batch_tokens(1 + 530 - 32);
    let batch = bench.until(late);
    bench.commit(&batch);
    let batch = bench.until(early);
    let computed = batch.sequences.iter().find(|s| s.request == early).map(|s| s.num_tokens);
    assert_eq!((batch.restores.len(), computed), (0, Some(200 - 192)), "{:?}", batch.sequences);
    assert_eq!(bench.scheduler.num_swapped_pages(), 0);
}

#[test]
fn a_sequence_does_not_come_back_with_the_step_that_saves_it() {
    let mut bench = Bench::new(60, 3, true);
    bench.scheduler.use_chunks();
    (0..4).for_each(|old| {
        bench.submit(GenerateRequest::new(vec![old; 16], 40));
    });
    let (long, _) = alike();
    let overtaken = bench.submit(long.clone());
    let young = bench.submit(GenerateRequest::new(vec![9; 40], 9));
    let waits = bench.submit(long);
    assert_eq!(bench.scheduler.next_prefetch(&mut bench.pages).unwrap().of, (overtaken, 0));
    bench.scheduler.end_prefetch((overtaken, 0));
    assert_eq!(bench.scheduler.next_prefetch(&mut bench.pages).unwrap().of, (waits, 0));
    assert_eq!(bench.step().sequences.len(), 6);
    let mut taken = Vec::new();
    assert!(bench.pages.allocate(bench.pages.num_free(), &mut taken));
    // Three of the old take the pages of the young one. The fourth takes those of the next, which are not saved, so that it
    // waits for the chunks of the last: then there is room for the young one.
    let batch = bench.schedule();
    assert_eq!(bench.scheduler.num_preemptions(), 2);
    assert_eq!((batch.saves.len(), batch.saves[0].of, batch.sequences.len()), (1, (young, 0), 4));
    // The step fails.
    let batch = bench.until(young);
    assert_eq!((batch.saves.len(), batch.restores.len()), (0, 0));
}

fn requests(count: usize, new_tokens: usize) -> Vec<GenerateRequest> {
    let request = |(index, prompt)| GenerateRequest {
        sampling: SamplingParams {
            temperature: 0.4 * (index % 3) as f32,
            seed: index as u64,
            logprobs: true,
            ..SamplingParams::default()
        },
        ..GenerateRequest::new(prompt, new_tokens)
    };
    prompts(count, 131).into_iter().enumerate().map(request).collect()
}

fn swapping(pages: usize) -> EngineConfig {
    EngineConfig {
        page_size: PAGE,
        kv: KvBudget::Tokens(pages * PAGE),
        preemption: Preemption::Swap { bytes: 1 << 30 },
        ..small()
    }
}

#[track_caller]
fn assert_same(what: &str, got: &[Outcome], want: &[Outcome]) {
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "{what}: request {index}");
    }
}

#[test]
fn swapping_changes_no_bit_with_and_without_the_prefix_cache_and_drafts() {
    let requests = requests(12, 40);
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let mut engine = open(folder.path(), &small()).unwrap();
    let want: Vec<Outcome> = requests.iter().map(|request| run_one(&mut engine, request)).collect();
    let model = Drafter::Model(ModelSource::Folder(folder.path().to_owned()));
    let with = |drafter| Some(Speculation { drafter, max_drafts: 4, length: DraftLength::Fixed });
    for speculation in [None, with(Drafter::PromptLookup), with(model)] {
        for prefix_cache in [true, false] {
            let config = EngineConfig { prefix_cache, speculation: speculation.clone(), ..swapping(12) };
            let mut engine = open(folder.path(), &config).unwrap();
            let got = run_all(&mut engine, &requests);
            let stats = engine.stats();
            assert!(stats.preemptions > 0 && stats.swap.restored_pages > 0, "{stats:?}");
            assert_eq!(stats.swapped_bytes, 0, "saved pages leaked");
            assert_same(&format!("{config:?}"), &got, &want);
        }
    }
}

#[test]
fn the_host_holds_what_the_budget_allows_and_nothing_of_a_request_that_was_aborted() {
    let folder = model_folder(&tiny_config(), Dtype::BF16);
    let page = open(folder.path(), &swapping(12)).unwrap().kv_config().page_bytes();
    let config = EngineConfig { preemption: Preemption::Swap { bytes: 3 * page + 1 }, ..swapping(12) };
    let mut engine = open(folder.path(), &config).unwrap();
    let ids: Vec<RequestId> = requests(12, 40).into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut most = 0;
    while engine.stats().swapped_bytes < 2 * page {
        engine.step().unwrap();
        most = most.max(engine.stats().swapped_bytes);
        assert!(engine.has_work(), "{most} bytes were kept at most");
    }
    assert!(engine.stats().swapped_bytes <= 3 * page);
    assert!(ids.into_iter().filter(|&id| engine.abort(id)).count() > 1);
    assert_eq!(engine.stats().swapped_bytes, 0);
}

#[test]
fn a_gpu_gives_the_same_bits_swapped_or_not() {
    for gpu in gpus() {
        let (count, new_tokens) = if gpu.software { (4, 24) } else { (12, 40) };
        let requests = requests(count, new_tokens);
        let folder = model_folder(&tiny_config(), Dtype::BF16);
        let want = run_all(&mut open_on(&gpu.device, folder.path(), &small()).unwrap(), &requests);
        let mut engine =
            open_on(&gpu.device, folder.path(), &swapping(if gpu.software { 8 } else { 12 })).unwrap();
        assert_same(&gpu.name, &run_all(&mut engine, &requests), &want);
        let stats = engine.stats();
        println!("{}: {:?}", gpu.name, stats.swap);
        assert!(stats.swap.restored_pages > 0, "{stats:?}");
    }
}

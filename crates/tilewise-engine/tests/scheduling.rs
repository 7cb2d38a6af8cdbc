//! The scheduler without a model: what is in a batch, who waits, who gives way.

use tilewise::{NotFinite, Sampled};
use tilewise_engine::cache::PagePool;
use tilewise_engine::scheduler::{BatchPlan, Priority, Scheduler, SchedulerConfig};
use tilewise_engine::{CachedTokens, Event, FinishReason, GenerateRequest, RequestId};

const PAGE: usize = 16;

struct Bench {
    scheduler: Scheduler,
    pages: PagePool,
}

impl Bench {
    fn new(num_pages: usize, max_batch_tokens: usize) -> Self {
        Self::with_priority(num_pages, max_batch_tokens, Priority::Decode)
    }

    fn with_priority(num_pages: usize, max_batch_tokens: usize, priority: Priority) -> Self {
        let config = SchedulerConfig {
            max_batch_tokens,
            max_running: 8,
            page_size: PAGE,
            max_context: 1000,
            max_drafts: 0,
            priority,
            prefix_cache: false,
            swap_pages: 0,
        };
        Self { scheduler: Scheduler::new(config), pages: PagePool::new(num_pages) }
    }

    fn submit(&mut self, prompt: usize, new_tokens: usize) -> RequestId {
        self.scheduler.submit(GenerateRequest::new(vec![1; prompt], new_tokens), &self.pages).unwrap()
    }

    fn schedule(&mut self) -> Option<BatchPlan> {
        let batch = self.scheduler.schedule(&mut self.pages)?;
        assert_consistent(&batch);
        Some(batch)
    }

    /// Commits a batch whose every row draws `token`.
    fn commit(&mut self, batch: &BatchPlan, token: u32) -> Vec<Event> {
        let sampled = vec![Ok(Sampled { id: token, logprob: None }); batch.logits_rows.len()];
        self.scheduler.commit(batch, &sampled, &mut self.pages, &mut |_, _| None)
    }

    /// One step, as (request, tokens) pairs.
    fn step(&mut self) -> Vec<(u64, usize)> {
        let Some(batch) = self.schedule() else { return Vec::new() };
        self.commit(&batch, 5);
        batch.sequences.iter().map(|sequence| (sequence.request.0, sequence.num_tokens)).collect()
    }
}

/// What every batch must be, whatever led to it.
fn assert_consistent(batch: &BatchPlan) {
    let total: usize = batch.sequences.iter().map(|sequence| sequence.num_tokens).sum();
    assert_eq!((batch.token_ids.len(), batch.positions.len()), (total, total));
    assert_eq!(batch.layout.total_queries(), total);
    assert_eq!(batch.layout.positions().collect::<Vec<_>>(), batch.positions);
    let rows = batch.sequences.iter().filter(|sequence| sequence.sampling.is_some()).count();
    assert_eq!(batch.logits_rows.len(), rows);
    let mut pages: Vec<u32> =
        (0..batch.sequences.len()).flat_map(|s| batch.layout.pages(s)).copied().collect();
    let all = pages.len();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), all, "two sequences share a page");
}

#[test]
fn an_idle_scheduler_has_no_batch() {
    assert!(Bench::new(4, 16).schedule().is_none());
}

#[test]
fn ragged_prefills_and_decodes_share_one_batch() {
    let mut bench = Bench::new(16, 64);
    bench.submit(10, 5);
    assert_eq!(bench.step(), [(0, 10)]);
    bench.submit(20, 5);
    bench.submit(3, 5);
    let batch = bench.schedule().unwrap();
    assert_eq!(batch.layout.qo_indptr(), [0, 1, 21, 24]);
    assert_eq!(batch.logits_rows, [0, 20, 23]);
    assert_eq!(batch.positions[..2], [10, 0]);
}

#[test]
fn decodes_come_before_prefill_chunks_and_the_budget_holds() {
    let mut bench = Bench::new(64, 16);
    bench.submit(4, 50);
    bench.step();
    bench.submit(40, 5);
    bench.submit(9, 5);
    assert_eq!(bench.step(), [(0, 1), (1, 15)]);
    assert_eq!(bench.step(), [(0, 1), (1, 15)]);
    assert_eq!(bench.step(), [(0, 1), (1, 10), (2, 5)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 4)]);
}

#[test]
fn prompts_take_what_was_said_beside_sequences_that_generate_and_the_whole_step_otherwise() {
    let mut bench = Bench::new(64, 16);
    bench.scheduler.set_prefill_beside_decodes(3);
    bench.submit(20, 3);
    bench.submit(9, 5);
    assert_eq!(bench.step(), [(0, 16)]);
    assert_eq!(bench.step(), [(0, 4), (1, 9)]);
    bench.submit(7, 5);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 3)]);
    bench.scheduler.set_prefill_beside_decodes(0);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1)], "a prompt is never held up for good");
}

#[test]
fn only_a_chunk_that_ends_the_prompt_samples() {
    let mut bench = Bench::new(64, 16);
    bench.submit(40, 5);
    let rows: Vec<usize> = (0..3)
        .map(|_| {
            let batch = bench.schedule().unwrap();
            bench.commit(&batch, 1);
            batch.logits_rows.len()
        })
        .collect();
    assert_eq!(rows, [0, 0, 1]);
}

#[test]
fn prefill_priority_decodes_only_when_all_prompts_are_in() {
    let mut bench = Bench::with_priority(64, 16, Priority::Prefill);
    for _ in 0..3 {
        bench.submit(12, 5);
    }
    assert_eq!(bench.step(), [(0, 12), (1, 4)]);
    assert_eq!(bench.step(), [(1, 8), (2, 8)]);
    assert_eq!(bench.step(), [(2, 4)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1)]);
}

#[test]
fn requests_are_admitted_in_order_when_pages_are_free() {
    let mut bench = Bench::new(6, 256);
    bench.submit(60, 2);
    bench.submit(40, 2);
    bench.submit(1, 2);
    // The second does not fit beside the first, and the third does not overtake it.
    assert_eq!(bench.step(), [(0, 60)]);
    assert_eq!(bench.scheduler.num_waiting(), 2);
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!(bench.step(), [(1, 40), (2, 1)]);
}

#[test]
fn no_more_than_max_running_run() {
    let mut bench = Bench::new(64, 256);
    for _ in 0..12 {
        bench.submit(2, 3);
    }
    assert_eq!(bench.step().len(), 8);
    assert_eq!((bench.scheduler.num_running(), bench.scheduler.num_waiting()), (8, 4));
}

#[test]
fn the_youngest_gives_way_and_comes_back_with_its_text_as_prompt() {
    let mut bench = Bench::new(4, 256);
    bench.submit(30, 34);
    bench.submit(14, 20);
    assert_eq!(bench.step(), [(0, 30), (1, 14)]);
    // Tokens 15 and 16 of the second fit its page; its 17th and the first's 33rd want the last one.
    for _ in 0..2 {
        assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    }
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!((bench.scheduler.num_preemptions(), bench.scheduler.num_waiting()), (1, 1));
    let mut steps = 0;
    while bench.scheduler.num_running() == 1 && bench.step()[0].0 == 0 {
        steps += 1;
        assert!(steps < 100);
    }
    let batch = bench.schedule().unwrap();
    assert_eq!(batch.sequences[0].request, RequestId(1));
    assert_eq!(batch.token_ids, [vec![1; 14], vec![5; 4]].concat()[..batch.token_ids.len()]);
}

#[test]
fn a_request_that_can_never_fit_is_refused_when_submitted() {
    let mut bench = Bench::new(2, 256);
    let mut refuse = |prompt, new_tokens, word: &str| {
        let error = bench.scheduler.submit(GenerateRequest::new(vec![1; prompt], new_tokens), &bench.pages);
        let text = error.unwrap_err().to_string();
        assert!(text.contains(word), "{text}");
    };
    refuse(30, 4, "the cache holds 33");
    refuse(999, 2, "the model's context holds 1000");
    refuse(1, usize::MAX, "the model's context holds 1000");
    bench.submit(30, 3);
    let mut steps = 0;
    while bench.schedule().is_some_and(|batch| !bench.commit(&batch, 1).is_empty()) {
        steps += 1;
    }
    assert_eq!((steps, bench.pages.num_free()), (3, 2));
}

#[test]
fn an_aborted_request_frees_its_pages_at_once() {
    let mut bench = Bench::new(8, 16);
    let (running, waiting) = (bench.submit(40, 5), bench.submit(100, 5));
    bench.step();
    assert!(bench.pages.num_free() < 8);
    assert!(bench.scheduler.abort(waiting, &mut bench.pages));
    assert!(bench.scheduler.abort(running, &mut bench.pages));
    assert!(!bench.scheduler.abort(running, &mut bench.pages));
    assert_eq!(bench.pages.num_free(), 8);
    assert!(bench.schedule().is_none());
}

#[test]
fn a_batch_whose_request_was_aborted_meanwhile_commits_the_others() {
    let mut bench = Bench::new(8, 64);
    let (first, second) = (bench.submit(4, 5), bench.submit(4, 5));
    let batch = bench.schedule().unwrap();
    bench.scheduler.abort(first, &mut bench.pages);
    let events = bench.commit(&batch, 3);
    assert_eq!(
        events,
        [Event::Token { request: second, index: 0, id: 3, logprob: None, top_logprobs: Vec::new() }]
    );
}

#[test]
fn a_step_that_failed_is_scheduled_again() {
    let mut bench = Bench::new(8, 64);
    bench.submit(20, 5);
    let first = bench.schedule().unwrap();
    let again = bench.schedule().unwrap();
    assert_eq!((first.token_ids, first.layout), (again.token_ids, again.layout));
}

#[test]
fn a_stop_token_is_reported_and_ends_the_request() {
    let mut bench = Bench::new(8, 64);
    let request = GenerateRequest { stop_ids: vec![9], ..GenerateRequest::new(vec![1; 4], 100) };
    let id = bench.scheduler.submit(request, &bench.pages).unwrap();
    bench.step();
    let batch = bench.schedule().unwrap();
    let events = bench.commit(&batch, 9);
    assert_eq!(
        events.last(),
        Some(&Event::Finished {
            request: id,
            index: 0,
            reason: FinishReason::Stop(9),
            cached_tokens: 0,
            cached_from: CachedTokens::default(),
        })
    );
    assert_eq!(events.len(), 2);
    assert_eq!(bench.pages.num_free(), 8);
}

#[test]
fn a_row_that_cannot_be_sampled_ends_its_own_request_only() {
    let mut bench = Bench::new(8, 64);
    let (bad, good) = (bench.submit(4, 5), bench.submit(4, 5));
    let batch = bench.schedule().unwrap();
    let failure = FinishReason::Failed(NotFinite.to_string());
    let sampled = [Err(failure.clone()), Ok(Sampled { id: 2, logprob: None })];
    let events = bench.scheduler.commit(&batch, &sampled, &mut bench.pages, &mut |_, _| None);
    assert_eq!(
        events,
        [
            Event::Finished {
                request: bad,
                index: 0,
                reason: failure,
                cached_tokens: 0,
                cached_from: CachedTokens::default(),
            },
            Event::Token { request: good, index: 0, id: 2, logprob: None, top_logprobs: Vec::new() },
        ]
    );
    assert_eq!(bench.scheduler.num_running(), 1);
}

#[test]
fn random_arrivals_in_a_small_pool_all_finish_with_all_their_tokens() {
    for seed in 0..20u64 {
        let mut bench = Bench::new(9, 24);
        let mut random = seed;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let (mut wanted, mut got, mut finished) = (Vec::new(), Vec::new(), 0);
        for step in 0..5000 {
            if wanted.len() < 40 && next(3) == 0 {
                let (prompt, new_tokens) = (1 + next(70) as usize, 1 + next(60) as usize);
                assert_eq!(bench.submit(prompt, new_tokens), RequestId(wanted.len() as u64));
                wanted.push(new_tokens);
                got.push(0);
            }
            let Some(batch) = bench.schedule() else {
                if wanted.len() == 40 {
                    break;
                }
                continue;
            };
            for event in bench.commit(&batch, 3) {
                match event {
                    Event::Token { request, .. } => got[request.0 as usize] += 1,
                    Event::Finished { .. } => finished += 1,
                    _ => {}
                }
            }
            assert!(step < 4999, "seed {seed}: {finished} of {} finished", wanted.len());
        }
        assert_eq!((got, finished, bench.pages.num_free()), (wanted, 40, 9), "seed {seed}");
    }
}

/// A request for `n` completions.
fn completions(bench: &mut Bench, prompt: usize, n: usize) -> RequestId {
    let request = GenerateRequest { n, ..GenerateRequest::new(vec![1; prompt], 5) };
    bench.scheduler.submit(request, &bench.pages).unwrap()
}

#[test]
fn completions_share_a_prompt_and_the_last_to_write_its_partial_page_needs_no_copy() {
    let mut bench = Bench::new(16, 64);
    completions(&mut bench, 20, 4);
    let batch = bench.schedule().unwrap();
    assert_eq!((batch.token_ids.len(), batch.logits_rows.as_slice()), (20, [19; 4].as_slice()));
    assert_eq!(bench.commit(&batch, 7).len(), 4);
    assert_eq!((bench.scheduler.num_running(), bench.pages.num_free()), (4, 14));
    // A step that failed is repeated with its copies.
    let (first, again) =
        (bench.scheduler.schedule(&mut bench.pages).unwrap(), bench.scheduler.schedule(&mut bench.pages));
    assert_eq!(Some(&first.copies), again.as_ref().map(|batch| &batch.copies));
    let shared = first.layout.pages(3)[1];
    assert_eq!(first.copies.iter().map(|copy| copy.0.0).collect::<Vec<_>>(), [shared; 3]);
    assert_eq!(first.token_ids, [7; 4]);
    bench.commit(&first, 8);
    assert_eq!(bench.pages.num_free(), 16 - 1 - 4, "one full page and four partial ones");
    assert_eq!(bench.scheduler.schedule(&mut bench.pages).unwrap().copies, []);
}

#[test]
fn completions_after_a_full_page_need_no_copy() {
    let mut bench = Bench::new(16, 64);
    completions(&mut bench, 32, 3);
    let batch = bench.schedule().unwrap();
    bench.commit(&batch, 7);
    let batch = bench.scheduler.schedule(&mut bench.pages).unwrap();
    assert_eq!((batch.copies.len(), batch.token_ids.len()), (0, 3));
    assert_eq!(bench.pages.num_free(), 16 - 2 - 3);
}

#[test]
fn completions_that_do_not_fit_at_once_come_later_and_an_abort_ends_all() {
    for aborts in [false, true] {
        let mut bench = Bench::new(64, 256);
        let request = completions(&mut bench, 20, 11);
        let batch = bench.schedule().unwrap();
        assert_eq!(bench.commit(&batch, 7).len(), 8);
        assert_eq!((bench.scheduler.num_running(), bench.scheduler.num_waiting()), (8, 3));
        if aborts {
            assert!(bench.scheduler.abort(request, &mut bench.pages));
        }
        let mut finished = 0;
        while let Some(batch) = bench.scheduler.schedule(&mut bench.pages) {
            let events = bench.commit(&batch, 7);
            finished += events.iter().filter(|event| matches!(event, Event::Finished { .. })).count();
        }
        assert_eq!((finished, bench.pages.num_free()), (if aborts { 0 } else { 11 }, 64));
    }
}

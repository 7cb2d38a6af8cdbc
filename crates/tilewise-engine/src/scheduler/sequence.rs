//! One completion's tokens and pages.

use std::ops::Range;

use tilewise::{LogitChange, LogprobsOf};

use super::batch::PromptScores;
use super::prefetch::Chunks;
use super::swap::Swapped;
use crate::cache::{PageId, PagePool, PrefixTree};
use crate::request::CachedTokens;
use crate::sampler::{History, completion_seed};
use crate::{Event, FinishReason, GenerateRequest, RequestId, SamplingParams};

#[derive(Debug, Clone)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// Which completion of its request.
    pub(super) index: usize,
    /// Completions that part from this one when its first token is drawn; 0 afterwards.
    pub(super) siblings: usize,
    /// The prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the pages.
    pub(super) computed: usize,
    pub(super) pages: Vec<PageId>,
    /// What the page that its next token goes to is a copy of, once that step is done. Held until then, so that a step
    /// that failed can be repeated.
    pub(super) copy_of: Option<PageId>,
    /// What is kept of it outside the device, from when it gave way until it runs again.
    pub(super) swapped: Option<Swapped>,
    /// The tokens that its next steps are thought to draw, to be verified in one.
    pub(super) drafts: Vec<u32>,
    pub(super) sampling: SamplingParams,
    history: History,
    /// How many of the most probable tokens are told of with each of the prompt's, if they are.
    prompt_logprobs: Option<usize>,
    /// Tokens after which that was told already.
    scored: usize,
    /// Who may share its pages.
    pub(super) salt: Option<String>,
    /// Tokens of the prompt that were found in the cache; `None` before its first admission.
    pub(super) cached_tokens: Option<CachedTokens>,
    /// What it has to do with chunks outside the device.
    pub(super) chunks: Chunks,
    /// Pages that are in the prefix tree, from the front.
    published: usize,
    stop_ids: Vec<u32>,
    /// The number of tokens at which the sequence ends.
    max_tokens: usize,
    prompt_len: usize,
}

impl Sequence {
    pub(super) fn new(id: RequestId, request: GenerateRequest) -> Self {
        let prompt_len = request.prompt.len();
        Self {
            id,
            index: 0,
            siblings: request.n.saturating_sub(1),
            max_tokens: prompt_len + request.max_new_tokens,
            prompt_len,
            history: History::new(&request.sampling, &request.prompt),
            tokens: request.prompt,
            computed: 0,
            pages: Vec::new(),
            copy_of: None,
            swapped: None,
            drafts: Vec::new(),
            prompt_logprobs: request.prompt_logprobs,
            scored: 0,
            sampling: request.sampling,
            salt: request.cache_salt,
            cached_tokens: None,
            chunks: Chunks::default(),
            published: 0,
            stop_ids: request.stop_ids,
        }
    }

    /// The order of both queues.
    pub(super) fn key(&self) -> (RequestId, usize) {
        (self.id, self.index)
    }

    /// How completion `index` of the request is drawn, if this is the first.
    pub(super) fn sampling_of(&self, index: usize) -> SamplingParams {
        SamplingParams { seed: completion_seed(self.sampling.seed, index), ..self.sampling.clone() }
    }

    /// Another completion of the request, without pages.
    pub(super) fn sibling(&self, index: usize) -> Self {
        Self {
            index,
            siblings: 0,
            prompt_logprobs: None,
            sampling: self.sampling_of(index),
            computed: 0,
            pages: Vec::new(),
            chunks: self.chunks.of_sibling(),
            published: 0,
            ..self.clone()
        }
    }

    /// Another completion of the request, which shares all pages of this one.
    pub(super) fn fork(&self, index: usize, pages: &mut PagePool) -> Self {
        pages.retain(&self.pages);
        Self {
            computed: self.computed,
            pages: self.pages.clone(),
            published: self.published,
            ..self.sibling(index)
        }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that are known but not computed.
    pub(super) fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether only the token generated last is to be computed.
    pub(super) fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.tokens.len() > self.prompt_len
    }

    /// The drafts that could be of use: the token after the last one is not the one at which the sequence ends.
    pub(super) fn most_drafts(&self) -> usize {
        if self.is_decoding() { self.max_tokens - self.tokens.len() - 1 } else { 0 }
    }

    /// What penalties and bias change of the logits after its tokens, row 0, and after each of `drafts`.
    pub(super) fn changes(&self, drafts: &[u32]) -> Vec<LogitChange> {
        self.history.changes(&self.sampling, drafts)
    }

    /// The page that its next token goes to, if other tokens are in it already.
    pub(super) fn partial_page(&self, page_size: usize) -> Option<PageId> {
        let is_partial = !self.computed.is_multiple_of(page_size);
        is_partial.then(|| self.pages.get(self.computed / page_size).copied()).flatten()
    }

    /// Takes the pages that its tokens still lack, and one of its own for its partial page if that is shared; all of
    /// them or none. Cached pages that nobody uses give way.
    pub(super) fn reserve(&mut self, is_shared: bool, prefix: &mut PrefixTree, pages: &mut PagePool) -> bool {
        let page_size = prefix.page_size();
        let lacking = self.tokens.len().div_ceil(page_size).saturating_sub(self.pages.len());
        let lacking = lacking + usize::from(is_shared);
        if !prefix.make_room(lacking, pages, |_| ()) || !pages.allocate(lacking, &mut self.pages) {
            return false;
        }
        if is_shared && let Some(own) = self.pages.pop() {
            let partial = self.computed / page_size;
            self.copy_of = Some(std::mem::replace(&mut self.pages[partial], own));
        }
        true
    }

    /// Takes pages for drafts too, if there are; true if it has them.
    pub(super) fn reserve_drafts(
        &mut self,
        count: usize,
        prefix: &mut PrefixTree,
        pages: &mut PagePool,
    ) -> bool {
        let needed = (self.tokens.len() + count).div_ceil(prefix.page_size());
        let lacking = needed.saturating_sub(self.pages.len());
        prefix.make_room(lacking, pages, |_| ()) && pages.allocate(lacking, &mut self.pages)
    }

    /// Gives up the pages that only drafts needed, and the drafts.
    pub(super) fn truncate(&mut self, page_size: usize, pages: &mut PagePool) {
        self.drafts.clear();
        let needed = self.tokens.len().div_ceil(page_size);
        pages.release(self.pages.drain(needed.min(self.pages.len())..));
    }

    /// The tokens that need not be computed if they are cached: all but the last, whose logits are needed, and none whose
    /// logprobs are asked for.
    fn usable(&self) -> &[u32] {
        let asked = self.prompt_logprobs.is_some() && self.scored + 1 < self.prompt_len;
        &self.tokens[..if asked { self.scored } else { self.tokens.len() - 1 }]
    }

    /// What is to be told of the prompt's logprobs after the next `num_tokens` tokens.
    pub(super) fn scores(&self, num_tokens: usize) -> Option<PromptScores> {
        let top = self.prompt_logprobs? as u32;
        let (start, end) = (self.computed.max(self.scored), self.computed + num_tokens);
        let tokens = self.tokens.get(start + 1..self.prompt_len.min(end + 1)).unwrap_or_default();
        let asked = tokens.iter().map(|&token| LogprobsOf { token, top }).collect();
        (!tokens.is_empty()).then_some(PromptScores {
            first: start - self.computed,
            position: start + 1,
            asked,
        })
    }

    /// Starts with the pages that the tree has of its tokens.
    pub(super) fn adopt(&mut self, prefix: &mut PrefixTree, pages: &mut PagePool) {
        self.pages = prefix.lookup(self.salt.as_deref(), self.usable(), pages);
        self.published = self.pages.len();
        self.computed = self.published * prefix.page_size();
    }

    /// Puts the pages that became full into the tree, so that others can share them at once, and says which the tree did
    /// not have.
    pub(super) fn publish(&mut self, prefix: &mut PrefixTree, pages: &mut PagePool) -> Range<usize> {
        let full = self.computed / prefix.page_size();
        if full <= self.published {
            return full..full;
        }
        let tokens = &self.tokens[..full * prefix.page_size()];
        let had = prefix.insert(self.salt.as_deref(), tokens, &mut self.pages[..full], pages);
        self.published = full;
        had..full
    }

    /// Whole pages that both will have the same, if they may share any.
    pub(super) fn common_pages(&self, other: &Self, page_size: usize) -> usize {
        if self.salt != other.salt {
            return 0;
        }
        self.usable().iter().zip(&other.tokens).take_while(|(a, b)| a == b).count() / page_size
    }

    /// Gives up all pages; the full ones stay in the tree until somebody needs their room.
    pub(super) fn preempt(&mut self, pages: &mut PagePool) {
        pages.release(self.copy_of.take());
        pages.release(self.pages.drain(..));
        self.drafts.clear();
        self.computed = 0;
        self.published = 0;
    }

    pub(super) fn release(mut self, pages: &mut PagePool) {
        self.preempt(pages);
    }

    /// Gives up all pages and says why.
    pub(super) fn finish(self, reason: FinishReason, pages: &mut PagePool) -> Event {
        let (request, index) = self.key();
        let cached_from = self.cached_tokens.unwrap_or_default();
        self.release(pages);
        Event::Finished { request, index, reason, cached_tokens: cached_from.total(), cached_from }
    }

    /// Notes that a step is done.
    pub(super) fn advance(&mut self, num_tokens: usize, pages: &mut PagePool) {
        pages.release(self.copy_of.take());
        self.computed += num_tokens;
        self.scored = self.scored.max(self.computed);
    }

    /// Appends a generated token and says whether it was the last.
    pub(super) fn push(&mut self, id: u32) -> Option<FinishReason> {
        self.tokens.push(id);
        self.history.push(&self.sampling, id);
        if self.stop_ids.contains(&id) {
            return Some(FinishReason::Stop(id));
        }
        (self.tokens.len() >= self.max_tokens).then_some(FinishReason::Length)
    }
}

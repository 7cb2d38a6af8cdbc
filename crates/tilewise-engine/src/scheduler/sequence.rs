//! One request's tokens and pages.

use crate::cache::{PageId, PagePool};
use crate::{FinishReason, GenerateRequest, RequestId, SamplingParams};

#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: RequestId,
    /// The prompt, then what was generated.
    pub(super) tokens: Vec<u32>,
    /// Tokens whose keys and values are in the pages.
    pub(super) computed: usize,
    pub(super) pages: Vec<PageId>,
    pub(super) sampling: SamplingParams,
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
            max_tokens: prompt_len + request.max_new_tokens,
            prompt_len,
            tokens: request.prompt,
            computed: 0,
            pages: Vec::new(),
            sampling: request.sampling,
            stop_ids: request.stop_ids,
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

    /// Takes the pages that its tokens still lack, all of them or none.
    pub(super) fn reserve(&mut self, page_size: usize, pages: &mut PagePool) -> bool {
        let lacking = self.tokens.len().div_ceil(page_size).saturating_sub(self.pages.len());
        pages.allocate(lacking, &mut self.pages)
    }

    pub(super) fn preempt(&mut self, pages: &mut PagePool) {
        pages.release(self.pages.drain(..));
        self.computed = 0;
    }

    pub(super) fn release(mut self, pages: &mut PagePool) {
        pages.release(self.pages.drain(..));
    }

    pub(super) fn advance(&mut self, num_tokens: usize) {
        self.computed += num_tokens;
    }

    /// Appends a generated token and says whether it was the last.
    pub(super) fn push(&mut self, id: u32) -> Option<FinishReason> {
        self.tokens.push(id);
        if self.stop_ids.contains(&id) {
            return Some(FinishReason::Stop(id));
        }
        (self.tokens.len() >= self.max_tokens).then_some(FinishReason::Length)
    }
}

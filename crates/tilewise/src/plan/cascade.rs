//! Chunks that several sequences have in the very same pages: read once for all of them.
//!
//! Nobody asks for it, and it changes no bit: a row's state of a joint chunk goes where it would have gone, and is
//! merged as it would have been. Cascade inference and Hydragen compute the shared prefix apart from the suffixes
//! (<https://flashinfer.ai/2024/02/02/cascade-inference.html>, <https://arxiv.org/abs/2402.05099>); here the chunks
//! into which keys are split anyway are what can be shared, so prefixes of prefixes need no levels.

use std::ops::Range;

use super::{AttentionPlan, KV_CHUNK, Sharer, WorkItem};
use crate::dispatch::Regime;
use crate::{AttentionParams, Mask};

/// A sequence whose keys are split into chunks.
pub(super) struct Chunked {
    pub(super) kernel: usize,
    pub(super) sequence: usize,
    pub(super) regime: Regime,
    /// Keys that at least one of its queries sees.
    pub(super) keys: Range<usize>,
    /// The chunks of these.
    pub(super) chunks: Range<usize>,
    /// Where its partial states start, in elements.
    pub(super) first_partial: usize,
    /// Elements of one head's states of one chunk.
    pub(super) states: usize,
    /// Elements between the states of two heads.
    pub(super) partial_stride: usize,
    /// The chunks that are in joint items, ascending.
    pub(super) joint: Vec<usize>,
}

impl Chunked {
    /// The chunks that are in no joint item.
    pub(super) fn alone(&self) -> impl Iterator<Item = usize> {
        self.chunks.clone().filter(|chunk| self.joint.binary_search(chunk).is_err())
    }

    /// Where the states of a head's chunk go.
    pub(super) fn partial(&self, kv_head: usize, chunk: usize) -> usize {
        self.first_partial + kv_head * self.partial_stride + (chunk - self.chunks.start) * self.states
    }

    /// The chunks that each of its queries sees all of.
    fn seen_whole(&self, mask: &Mask) -> Range<usize> {
        let Regime { num_queries, num_keys, .. } = self.regime;
        // Later queries see what begins and ends later.
        let [first, last] = [0, num_queries - 1].map(|query| mask.visible(query, num_queries, num_keys));
        last.start.div_ceil(KV_CHUNK)..first.end / KV_CHUNK
    }

    fn rows(&self, params: &AttentionParams) -> usize {
        self.regime.num_queries * params.group_size()
    }
}

/// A chunk of a sequence, in the order in which those of the same pages are neighbours.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<'a> {
    kernel: usize,
    chunk: usize,
    pages: &'a [u32],
    /// Among the split sequences.
    index: usize,
}

impl Candidate<'_> {
    fn shares(&self, other: &Self) -> bool {
        (self.kernel, self.chunk, self.pages) == (other.kernel, other.chunk, other.pages)
    }
}

impl AttentionPlan {
    /// Finds the chunks that several sequences share, and makes joint items of at most `most_rows` rows of them.
    ///
    /// Sequences of one chunk finish their rows themselves, and take no part.
    pub(super) fn join_chunks(&mut self, sequences: &mut [Chunked], most_rows: usize) {
        let layout = self.layout.clone();
        let Some(table) = layout.page_table() else { return };
        let each = KV_CHUNK / table.page_size;
        let mut candidates = Vec::new();
        for (index, own) in sequences.iter().enumerate().filter(|(_, own)| own.chunks.len() > 1) {
            let pages = layout.pages(own.sequence);
            let chunks = own.seen_whole(&self.params.mask);
            candidates.extend(chunks.map(|chunk| {
                let pages = &pages[chunk * each..(chunk + 1) * each];
                Candidate { kernel: own.kernel, chunk, pages, index }
            }));
        }
        candidates.sort_unstable();
        for same in candidates.chunk_by(Candidate::shares) {
            let mut rest = same;
            while let Some(first) = rest.first() {
                let mut rows = 0;
                let fits = |candidate: &&Candidate<'_>| {
                    rows += sequences[candidate.index].rows(&self.params);
                    rows <= most_rows
                };
                let count = rest.iter().take_while(fits).count().max(1);
                let members: Vec<usize> = rest[..count].iter().map(|candidate| candidate.index).collect();
                if members.len() > 1 {
                    self.join(first.chunk, &members, sequences);
                }
                rest = &rest[count..];
            }
        }
    }

    /// The joint items of a chunk, one for each KV head.
    fn join(&mut self, chunk: usize, members: &[usize], sequences: &mut [Chunked]) {
        for kv_head in 0..self.params.num_kv_heads {
            let mut sharers = members.iter().map(|&index| Sharer {
                sequence: sequences[index].sequence,
                queries: sequences[index].regime.num_queries,
                partial: sequences[index].partial(kv_head, chunk),
            });
            let Some(first) = sharers.next() else { return };
            self.work.push(WorkItem {
                kernel: sequences[members[0]].kernel,
                sequence: first.sequence,
                kv_heads: kv_head..kv_head + 1,
                queries: 0..first.queries,
                keys: chunk * KV_CHUNK..(chunk + 1) * KV_CHUNK,
                partial: Some(first.partial),
                partial_stride: 0,
                sharers: sharers.collect(),
            });
        }
        members.iter().for_each(|&index| sequences[index].joint.push(chunk));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::{Tiling, partition};
    use super::*;
    use crate::dispatch::{DispatchPolicy, KernelInfo, Rule, Split};
    use crate::{BatchLayout, PageTable};

    const KERNELS: &[KernelInfo] = &[
        KernelInfo { name: "whole", split: Split::Queries, refuses: |_| None },
        KernelInfo { name: "split", split: Split::Keys, refuses: |_| None },
    ];

    const RULES: &[Rule] = &[
        Rule { kernel: "split", when: "few", applies: |_, regime| regime.num_queries <= 4, evidence: "" },
        Rule { kernel: "whole", when: "many", applies: |_, _| true, evidence: "" },
    ];

    const KV_HEADS: usize = 2;

    /// A sequence: its queries, its keys, and the keys whose pages it has in common with all others.
    type Lens = (usize, usize, usize);

    fn layout(lens: &[Lens]) -> Arc<BatchLayout> {
        const PAGE: usize = 128;
        let mut table = PageTable { page_size: PAGE, indptr: vec![0], pages: Vec::new() };
        let (mut qo_indptr, mut own) = (vec![0], 1000..);
        for &(queries, keys, shared) in lens {
            let page = |page: usize| if page < shared / PAGE { Some(page as u32) } else { own.next() };
            table.pages.extend((0..keys.div_ceil(PAGE)).filter_map(page));
            table.indptr.push(table.pages.len() as u32);
            qo_indptr.push(qo_indptr[qo_indptr.len() - 1] + queries as u32);
        }
        let kv_len = lens.iter().map(|lens| lens.1 as u32).collect();
        Arc::new(BatchLayout::paged(qo_indptr, kv_len, table).unwrap())
    }

    fn plan(lens: &[Lens], mask: Mask, joint_rows: usize) -> AttentionPlan {
        let params = AttentionParams::new(2 * KV_HEADS, KV_HEADS, 8).mask(mask);
        let tiling = Tiling { rows: 64, join_heads: true, joint_rows };
        partition(&params, &layout(lens), &DispatchPolicy::new(KERNELS, RULES), None, tiling).unwrap()
    }

    /// Of each head of each sequence, the chunks of keys and where their states go.
    type States = BTreeMap<(usize, usize), Vec<(Range<usize>, Option<usize>)>>;

    fn states(plan: &AttentionPlan) -> States {
        let mut all = States::new();
        for item in plan.work().iter().filter(|item| KERNELS[item.kernel].split == Split::Keys) {
            for head in item.kv_heads.clone() {
                let later = (head - item.kv_heads.start) * item.partial_stride;
                let mut add = |sequence, queries, partial: Option<usize>| {
                    assert_eq!(queries, plan.layout().num_queries(sequence));
                    let state = (item.keys.clone(), partial.map(|first| first + later));
                    all.entry((sequence, head)).or_default().push(state);
                };
                add(item.sequence, item.queries.len(), item.partial);
                for sharer in &item.sharers {
                    add(sharer.sequence, sharer.queries, Some(sharer.partial));
                }
            }
        }
        all.values_mut().for_each(|chunks| chunks.sort_by_key(|chunk| chunk.0.start));
        all
    }

    /// The sequences and first keys of the joint items of the first head.
    fn joint(plan: &AttentionPlan) -> Vec<(Vec<usize>, usize)> {
        let items = plan.work().iter().filter(|item| !item.sharers.is_empty() && item.kv_heads.start == 0);
        let mut all: Vec<_> = items
            .map(|item| {
                let sharers = item.sharers.iter().map(|sharer| sharer.sequence);
                ([item.sequence].into_iter().chain(sharers).collect(), item.keys.start)
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_chunk_in_the_same_pages_is_one_item_of_all_its_sequences() {
        let lens = [(1, 1100, 1024), (1, 1030, 1024), (3, 2300, 2048), (1, 2100, 2048)];
        let plan = plan(&lens, Mask::Causal, usize::MAX);
        assert_eq!(joint(&plan), [(vec![0, 1, 2, 3], 0), (vec![2, 3], KV_CHUNK)]);
        // Two joint items and four ends, of each head.
        assert_eq!(plan.work().len(), (2 + 4) * KV_HEADS);
        // Of the rows of the first: twelve with two heads to a group.
        assert_eq!(plan.work()[0].num_queries(), 6);
    }

    #[test]
    fn states_go_where_they_would_go_without_sharing() {
        let lens = [(1, 1100, 1024), (2, 1030, 1024), (3, 2300, 2048), (1, 2100, 2048), (9, 1500, 1024)];
        let copied = lens.map(|(queries, keys, _)| (queries, keys, 0));
        let windows = [1500, 1100, 300];
        let windows = windows.map(|left| Mask::Window { left: Some(left), right: None, causal: true });
        let mut found = 0;
        for mask in [Mask::Causal, Mask::Full].into_iter().chain(windows) {
            for joint_rows in [1, 4, 8, usize::MAX] {
                let (got, want) = (plan(&lens, mask, joint_rows), plan(&copied, mask, joint_rows));
                assert_eq!(states(&got), states(&want), "{mask:?} {joint_rows}");
                assert_eq!((&got.merges, got.workspace), (&want.merges, want.workspace), "{mask:?}");
                assert!(joint(&want).is_empty(), "{mask:?} {joint_rows}");
                found += joint(&got).len();
            }
        }
        assert!(found > 0, "nothing was shared");
    }

    #[test]
    fn sequences_that_do_not_see_all_of_a_chunk_or_have_no_other_take_no_part() {
        let window = |left| Mask::Window { left: Some(left), right: None, causal: true };
        // Of 2100 keys the last query sees those from 2099 - left.
        let lens = [(1, 2100, 2048), (1, 2100, 2048), (1, 1030, 1024)];
        assert_eq!(joint(&plan(&lens, window(2099), 64)), [(vec![0, 1], KV_CHUNK), (vec![0, 1, 2], 0)]);
        assert_eq!(joint(&plan(&lens, window(2098), 64)), [(vec![0, 1], KV_CHUNK)]);
        assert_eq!(joint(&plan(&lens, window(1075), 64)), [(vec![0, 1], KV_CHUNK)]);
        assert!(joint(&plan(&lens, window(1074), 64)).is_empty());
        // The first of three queries sees the last key of the chunk, that of four does not.
        let early = [(3, 1026, 1024), (1, 1100, 1024), (2, 1026, 1024)];
        assert_eq!(joint(&plan(&early, Mask::Causal, 64)), [(vec![0, 1, 2], 0)]);
        let late = [(4, 1026, 1024), (1, 1100, 1024), (2, 1026, 1024)];
        assert_eq!(joint(&plan(&late, Mask::Causal, 64)), [(vec![1, 2], 0)]);
        // The chunk is all that the first one has: it writes its last key, which the others read.
        let only = [(1, 1024, 1024), (1, 1100, 1024), (1, 1030, 1024)];
        assert_eq!(joint(&plan(&only, Mask::Causal, 64)), [(vec![1, 2], 0)]);
        // Prompts are cut by queries.
        let prompt = [(9, 1100, 1024), (1, 1100, 1024)];
        assert!(joint(&plan(&prompt, Mask::Causal, 64)).is_empty());
    }

    #[test]
    fn more_rows_than_an_item_has_go_to_the_next() {
        let lens = [(1, 1100, 1024); 7];
        assert_eq!(
            joint(&plan(&lens, Mask::Causal, 6)),
            [(vec![0, 1, 2], 0), (vec![3, 4, 5], 0)],
            "three of two rows each, and the last one alone"
        );
        assert!(joint(&plan(&lens, Mask::Causal, 3)).is_empty());
    }
}

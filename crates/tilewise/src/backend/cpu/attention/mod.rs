//! Attention on the CPU: the kernels, the rules that choose among them, and the launch.

mod append;
mod decode;
mod fold;
mod item;
mod output;
mod prefill;
mod scalar;
mod source;
mod weigh;

pub(super) use append::append_kv;
pub(super) use fold::Scratch;

use std::sync::{Mutex, PoisonError};

use self::fold::{EndChunk, Q_SLACK};
use self::item::{Item, Place};
use self::output::{Merge, Output, Store};
use self::source::{KvSource, Paged, Stored, Tokens};
use super::buffer::{elements, host};
use super::simd::{Element, Kernel, LANES, Level, Simd};
use super::threads::Pool;
use super::tile::load_some;
use crate::checks;
use crate::dispatch::{KernelInfo, Rule, Split};
use crate::plan::WorkItem;
use crate::{AttentionPlan, DType, Error, Kv, KvLayer, Result, Tensor, TokenView};

/// The kernels, in the order of [`Path`].
pub(super) const KERNELS: &[KernelInfo] = &[
    KernelInfo { name: "prefill", split: Split::Queries, refuses: |_| None },
    KernelInfo { name: "decode-split-kv", split: Split::Keys, refuses: |_| None },
    KernelInfo { name: "reference", split: Split::Queries, refuses: |_| None },
];

/// The rules, first match first.
pub(super) const RULES: &[Rule] = &[
    Rule {
        kernel: "decode-split-kv",
        when: "at most 6 rows (queries x query heads per KV head): one register tile, memory decides",
        applies: |params, regime| regime.num_queries * params.group_size() <= 6,
        evidence: "bench/records/2026-11-23-zen3.csv",
    },
    Rule {
        kernel: "decode-split-kv",
        when: "at most 32 rows, keys in pages: widening them in registers costs less than storing them widened",
        applies: |params, regime| regime.paged && regime.num_queries * params.group_size() <= 32,
        evidence: "bench/records/2026-11-23-zen3.csv",
    },
    Rule {
        kernel: "prefill",
        when: "otherwise",
        applies: |_, _| true,
        evidence: "bench/records/2026-11-23-zen3.csv",
    },
];

/// What a work item does; the index in [`KERNELS`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    Prefill,
    Decode,
    Reference,
}

/// Rows of a prefill work item: its rows' queries, sums and scores should stay in the second cache.
pub(super) fn tile_rows(head_dim: usize) -> usize {
    const SECOND_CACHE: usize = 384 << 10;
    let row = 4 * (2 * head_dim + fold::SCORE_STRIDE);
    SECOND_CACHE / row / 12 * 12
}

/// Rows of a joint work item at most: items of 36 to 192 rows were up to 3 % faster, and there are fewer of them for
/// other threads. Several KV heads in an item, and the fold of prefill, won nothing (bench/records/2026-11-25-zen4.csv).
pub(super) const JOINT_ROWS: usize = 24;

/// Where the work of one launch runs.
pub(super) struct Launch<'a> {
    pub level: Level,
    pub pool: &'a Pool,
    pub scratch: &'a [Mutex<Scratch>],
    /// Memory for partial states, reused from launch to launch.
    pub partial: &'a Mutex<Vec<f32>>,
}

impl Launch<'_> {
    /// Runs a plan; see [`crate::Device::attention`].
    pub(super) fn attention(
        &self,
        plan: &AttentionPlan,
        q: TokenView<'_>,
        kv: Kv<'_>,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    ) -> Result<()> {
        let params = &plan.params;
        checks::attention_inputs(plan, &q, &kv, value_row(params.value_dim))?;
        // Every state is written before it is read: what an earlier launch left there does not matter.
        let mut workspace = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if workspace.len() < plan.workspace {
            workspace.resize(plan.workspace, 0.0);
        }
        let output = Output::new(plan, out, lse, &mut workspace)?;
        match params.kv_dtype {
            DType::F32 => self.typed::<f32>(plan, q, kv, &output),
            DType::F16 => self.typed::<half::f16>(plan, q, kv, &output),
            DType::Bf16 => self.typed::<half::bf16>(plan, q, kv, &output),
            DType::U32 => Err(Error::unsupported("attention", "u32 keys")),
        }
    }

    fn typed<E>(&self, plan: &AttentionPlan, q: TokenView<'_>, kv: Kv<'_>, output: &Output<'_>) -> Result<()>
    where
        E: Element + bytemuck::Pod + Stored,
    {
        match kv {
            Kv::Paged(layer) => {
                let keys = host(layer.keys.buffer())?.slice::<E::Paged>();
                let values = host(layer.values.buffer())?.slice::<E::Paged>();
                self.run(plan, q, output, |work| paged_source(plan, layer, (keys, values), work))
            }
            Kv::Contiguous { keys, values } => {
                let (k, v) = (elements::<E>(keys.tensor)?, elements::<E>(values.tensor)?);
                self.run(plan, q, output, |work| {
                    let first = plan.layout.kv_indptr()[work.sequence] as usize;
                    let start = |view: &TokenView<'_>| {
                        view.start(work.sequence, first) + work.kv_heads.start * view.head_stride
                    };
                    Tokens {
                        keys: k[start(&keys).min(k.len())..].as_ptr(),
                        values: v[start(&values).min(v.len())..].as_ptr(),
                        key_stride: keys.token_stride,
                        value_stride: values.token_stride,
                        key_head: keys.head_stride,
                        value_head: values.head_stride,
                        value_dim: plan.params.value_dim,
                    }
                })
            }
        }
    }

    fn run<K: KvSource>(
        &self,
        plan: &AttentionPlan,
        q: TokenView<'_>,
        output: &Output<'_>,
        source: impl Fn(&WorkItem) -> K + Sync,
    ) -> Result<()> {
        let queries = Queries::new(q)?;
        self.pool.run(plan.work.len(), &|thread, index| {
            let work = &plan.work[index];
            let mut scratch = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            let source = source(work);
            self.level.run(RunItem { plan, work, queries: &queries, source, output, scratch: &mut scratch });
        });
        self.pool.run(plan.merges.len(), &|_, index| {
            self.level.run(Merge { output, plan, merge: &plan.merges[index] });
        });
        Ok(())
    }
}

fn paged_source<'a, P>(
    plan: &'a AttentionPlan,
    layer: &KvLayer,
    (keys, values): (&[P], &[P]),
    work: &WorkItem,
) -> Paged<'a, P> {
    let config = &layer.config;
    let value_row = value_row(config.value_dim);
    let (key_head, value_head) = (config.page_size * config.head_dim, config.page_size * value_row);
    Paged {
        keys: keys[work.kv_heads.start * key_head..].as_ptr(),
        values: values[work.kv_heads.start * value_head..].as_ptr(),
        key_head,
        value_head,
        key_page: config.num_kv_heads * key_head,
        value_page: config.num_kv_heads * value_head,
        pages: plan.layout.pages(work.sequence),
        page_size: config.page_size,
        head_dim: config.head_dim,
    }
}

/// Elements of a value in a page: whole panels.
fn value_row(value_dim: usize) -> usize {
    value_dim.next_multiple_of(LANES)
}

/// The queries of a launch.
struct Queries<'a> {
    view: TokenView<'a>,
    elements: QueryElements<'a>,
}

enum QueryElements<'a> {
    F32(&'a [f32]),
    F16(&'a [half::f16]),
    Bf16(&'a [half::bf16]),
}

impl<'a> Queries<'a> {
    fn new(view: TokenView<'a>) -> Result<Self> {
        let elements = match view.tensor.dtype() {
            DType::F16 => QueryElements::F16(elements(view.tensor)?),
            DType::Bf16 => QueryElements::Bf16(elements(view.tensor)?),
            _ => QueryElements::F32(elements(view.tensor)?),
        };
        Ok(Self { view, elements })
    }

    /// Packs the item's rows into tiles `[head_dim][rows]`.
    #[inline(always)]
    fn pack<S: Simd>(&self, simd: S, plan: &AttentionPlan, item: &Item<'_>, to: &mut [f32]) {
        let head_dim = item.params.head_dim;
        for tile in item.tiles() {
            let to = to[tile.start * head_dim..tile.end * head_dim + Q_SLACK].as_mut_ptr();
            let row = |row: usize| {
                let Place { sequence, query, head, .. } = item.place(row);
                let start = self.view.start(sequence, plan.layout.qo_indptr()[sequence] as usize);
                let at = start + query * self.view.token_stride + head * self.view.head_stride;
                at..at + head_dim
            };
            // SAFETY: `to` is checked above. Tiles come in order, so what spills into the next one is overwritten.
            unsafe {
                match self.elements {
                    QueryElements::F32(q) => pack_tile(simd, tile.map(|r| &q[row(r)]), to),
                    QueryElements::F16(q) => pack_tile(simd, tile.map(|r| &q[row(r)]), to),
                    QueryElements::Bf16(q) => pack_tile(simd, tile.map(|r| &q[row(r)]), to),
                }
            }
        }
    }
}

/// Widens the rows of a tile and stores them as columns `[head_dim][rows]`.
///
/// # Safety
/// `to` must have room for [`Q_SLACK`] elements more.
#[inline(always)]
unsafe fn pack_tile<'a, S: Simd, E: Element + bytemuck::Zeroable>(
    simd: S,
    rows: impl ExactSizeIterator<Item = &'a [E]>,
    to: *mut f32,
) {
    let count = rows.len();
    let mut starts = [std::ptr::null(); 8];
    let mut head_dim = 0;
    for (start, row) in starts.iter_mut().zip(rows) {
        (*start, head_dim) = (row.as_ptr(), row.len());
    }
    for d in (0..head_dim).step_by(LANES) {
        let mut vectors = [simd.splat(0.0); 8];
        for r in 0..8 {
            if r < count {
                // SAFETY: the row has as many elements from `d` on.
                vectors[r] = unsafe { load_some(simd, starts[r].add(d), head_dim - d) };
            }
        }
        // SAFETY: lanes beyond the rows, and columns beyond `head_dim`, go to the next column's place or the slack.
        unsafe { simd.store_columns(&vectors, to.add(d * count), count) };
    }
}

/// One work item, on some instruction set.
struct RunItem<'a, K> {
    plan: &'a AttentionPlan,
    work: &'a WorkItem,
    queries: &'a Queries<'a>,
    source: K,
    output: &'a Output<'a>,
    scratch: &'a mut Scratch,
}

impl<K: KvSource> Kernel for RunItem<'_, K> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { plan, work, queries, source, output, scratch } = self;
        let lens = (plan.layout.num_queries(work.sequence), plan.layout.num_keys(work.sequence));
        let item = Item::new(&plan.params, work, lens, S::MAX_ROWS);
        let path = [Path::Prefill, Path::Decode, Path::Reference][work.kernel];
        scratch.prepare(&item);
        queries.pack(simd, plan, &item, &mut scratch.q);
        if path == Path::Reference {
            // SAFETY: the source is of the item's sequence.
            unsafe {
                scalar::attend(simd, &item, source, scratch, |row, state| {
                    output.store_state(simd, plan, &item, row, &state);
                });
            };
            return;
        }
        let mut first = true;
        for chunk in item.chunks() {
            scratch.start_chunk(&item);
            match path {
                Path::Prefill => prefill::fold_chunk(simd, &item, source, chunk, scratch),
                _ => decode::fold_chunk(simd, &item, source, chunk, scratch),
            }
            simd.vectorize(EndChunk { item: &item, first, scratch });
            first = false;
        }
        simd.vectorize(Store { output, plan, item: &item, scratch });
    }
}

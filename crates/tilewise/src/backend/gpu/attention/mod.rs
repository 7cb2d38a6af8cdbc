//! Attention on the GPU: the kernels, the rules that choose among them, and the launch.

mod resident;
mod rotate;
mod shape;

use super::context::{Abilities, Context};
use super::memory::{GpuBuffer, gpu};
use super::pipeline::Specialisation;
use super::rows::{Args, spread};
use crate::dispatch::{KernelInfo, Rule, Split};
use crate::{
    AttentionParams, AttentionPlan, BatchLayout, DType, DeviceBuffer, Error, Kv, KvLayer, Mask, Result,
    Tensor, TokenView, checks,
};

pub(super) use self::resident::reside;
use self::resident::{Resident, Tile};
pub(super) use self::rotate::append as append_rotated;
use self::shape::{MatrixShape, Size};

/// The kernels, in the order of [`Path`].
pub(super) const KERNELS: &[KernelInfo] = &[
    KernelInfo { name: "prefill", split: Split::Queries, refuses: |_| None },
    KernelInfo { name: "decode-split-kv", split: Split::Keys, refuses: |_| None },
];

/// The rules, first match first.
pub(super) const RULES: &[Rule] = &[
    Rule {
        kernel: "decode-split-kv",
        when: "at most 16 rows (queries x query heads per KV head): one tile, memory decides",
        applies: |params, regime| regime.num_queries * params.group_size() <= 16,
        evidence: "bench/records/2026-11-23-h200.csv",
    },
    Rule {
        kernel: "prefill",
        when: "otherwise",
        applies: |_, _| true,
        evidence: "bench/records/2026-11-23-h200.csv",
    },
];

/// Stands for the batch stride of ragged tokens: 0 is that of a dense batch whose sequences are the same.
const RAGGED: usize = u32::MAX as usize;

/// The pages of a layer's keys or values: the heads of each buffer, and the buffer.
pub(super) struct Pages {
    pub parts: Vec<(std::ops::Range<usize>, GpuBuffer)>,
}

impl DeviceBuffer for Pages {}

impl Pages {
    pub(super) fn of(tensor: &Tensor) -> Result<&Self> {
        (tensor.buffer() as &dyn std::any::Any)
            .downcast_ref()
            .ok_or_else(|| Error::shape("pages", "belong to another device than the gpu"))
    }
}

/// The work groups of each kernel for a batch.
pub(super) fn tiles(
    abilities: &Abilities,
    params: &AttentionParams,
    layout: &BatchLayout,
) -> [Tile; KERNELS.len()] {
    [Size::of(abilities, params, layout), Size::of_decode(abilities, params, layout)].map(|size| {
        match MatrixShape::new(abilities, params, size) {
            None => Tile { rows: fma_rows(params), carried: 0, shape: None },
            Some(shape) => {
                Tile { rows: shape.rows(), carried: shape.carried(params.value_dim), shape: Some(shape) }
            }
        }
    })
}

/// Rows of a work group of the f32 kernel: its queries should take at most 8 KiB of workgroup memory.
fn fma_rows(params: &AttentionParams) -> usize {
    (2048 / params.head_dim.max(params.value_dim) / 4 * 4).clamp(4, 16)
}

/// The type of 16-bit elements, as names of the templates.
fn words(dtype: DType) -> (&'static str, u32, u32) {
    match dtype {
        DType::F16 => ("u32", 1, 1),
        DType::Bf16 => ("u32", 1, 0),
        _ => ("f32", 0, 0),
    }
}

/// Sets how pages of a type are written.
fn page_type(kernel: Specialisation, dtype: DType) -> Specialisation {
    let (pair, f32s, f16s, bf16s) = match dtype {
        DType::F32 => ("vec2<f32>", 1, 0, 0),
        DType::F16 => ("vec2<f16>", 0, 1, 0),
        _ => ("u32", 0, 0, 1),
    };
    kernel.set("PAIR", pair).set("F32", f32s).set("F16", f16s).set("BF16", bf16s)
}

/// Writes new keys and values; see [`crate::Device::append_kv`].
pub(super) fn append(
    context: &Context,
    plan: &AttentionPlan,
    keys: TokenView<'_>,
    values: TokenView<'_>,
    layer: &KvLayer,
) -> Result<()> {
    checks::append(plan, &keys, &values, layer, plan.params.value_dim)?;
    let resident = resident::of(plan)?;
    let tokens = plan.layout.total_queries();
    for (view, tensor) in [(keys, &layer.keys), (values, &layer.values)] {
        let pages = Pages::of(tensor)?;
        let kernel = Specialisation::new("append", include_str!("append.wgsl"))
            .set("DIM", view.head_dim)
            .set("PAGE", layer.config.page_size);
        let kernel = page_type(kernel, tensor.dtype());
        for (heads, buffer) in &pages.parts {
            let count = tokens * heads.len() * view.head_dim / 2;
            let args = Args::default().numbers(&[
                count,
                view.offset,
                view.batch_stride.unwrap_or(RAGGED),
                view.token_stride,
                view.head_stride,
                resident.tokens_at,
                heads.start,
                heads.len(),
            ]);
            let buffers = [gpu(view.tensor)?, &resident.buffer, buffer];
            context.run(kernel.clone(), &buffers, &args, spread(count.div_ceil(64)))?;
        }
    }
    Ok(())
}

/// The KV heads that are in a pair of buffers.
struct Bound<'a> {
    heads: std::ops::Range<usize>,
    keys: &'a GpuBuffer,
    values: &'a GpuBuffer,
}

/// One call of [`attention`], whose work may take several launches.
struct Launcher<'a> {
    context: &'a Context,
    plan: &'a AttentionPlan,
    resident: &'a Resident,
    q: TokenView<'a>,
    kv: Kv<'a>,
    out: &'a Tensor,
    lse: Option<&'a Tensor>,
    /// Whether outputs are `[batch, heads, tokens]`.
    dense: bool,
    partial: &'a GpuBuffer,
}

/// Runs a plan; see [`crate::Device::attention`]. `partial` has room for the plan's workspace.
pub(super) fn attention(
    context: &Context,
    partial: &GpuBuffer,
    plan: &AttentionPlan,
    (q, kv): (TokenView<'_>, Kv<'_>),
    (out, lse): (&Tensor, Option<&Tensor>),
) -> Result<()> {
    checks::attention_inputs(plan, &q, &kv, plan.params.value_dim)?;
    let dense = checks::attention_outputs(plan, out, lse)?;
    let resident = resident::of(plan)?;
    let launcher = Launcher { context, plan, resident, q, kv, out, lse, dense, partial };
    let bound: Vec<Bound<'_>> = match kv {
        Kv::Paged(layer) => {
            let (keys, values) = (Pages::of(&layer.keys)?, Pages::of(&layer.values)?);
            let pairs = keys.parts.iter().zip(&values.parts);
            pairs.map(|((heads, keys), (_, values))| Bound { heads: heads.clone(), keys, values }).collect()
        }
        Kv::Contiguous { keys, values } => {
            let heads = 0..plan.params.num_kv_heads;
            vec![Bound { heads, keys: gpu(keys.tensor)?, values: gpu(values.tensor)? }]
        }
    };
    for bound in &bound {
        for path in [Path::Prefill, Path::Decode] {
            if !resident.items[path as usize].is_empty() {
                launcher.fold(path, bound)?;
            }
        }
        if resident.merges > 0 {
            launcher.merge(bound)?;
        }
    }
    Ok(())
}

/// What a work item does; the index in [`KERNELS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    Prefill,
    Decode,
}

impl Launcher<'_> {
    /// Computes the items of a kernel.
    fn fold(&self, path: Path, bound: &Bound<'_>) -> Result<()> {
        let (params, resident) = (&self.plan.params, self.resident);
        let stored = match self.kv {
            Kv::Paged(layer) => layer.keys.dtype(),
            Kv::Contiguous { .. } => params.kv_dtype,
        };
        let kernel = match resident.shapes[path as usize] {
            Some(shape) => matrix_kernel(params, shape, path, stored, self.is_aligned()),
            None => fma_kernel(params, stored),
        };
        let (q_type, q_words, q_f16) = words(params.q_dtype);
        // Matrix kernels take queries two at a time, where they lie so.
        let q_pairs = resident.shapes[path as usize].is_some() && multiples(&self.q, 2);
        let q_type = if q_pairs && q_words == 0 { "vec2<f32>" } else { q_type };
        let kernel = self
            .store(kernel)
            .set("Q", q_type)
            .set("Q_WORDS", q_words)
            .set("Q_PAIRS", u32::from(q_pairs))
            .set("Q_F16", q_f16)
            .set("MERGES", u32::from(path == Path::Prefill))
            .set("PAGED", u32::from(matches!(self.kv, Kv::Paged(_))))
            .set("PAGE", self.plan.layout.page_table().map_or(16, |table| table.page_size));
        let items = resident.items[path as usize].clone();
        let first = resident.items_at + 8 * items.start;
        let (mask, left, right) = mask(params.mask);
        let view = |view: &TokenView<'_>| {
            [view.offset, view.batch_stride.unwrap_or(RAGGED), view.token_stride, view.head_stride]
        };
        let (k, v) = match &self.kv {
            Kv::Paged(_) => ([0; 4], [0; 4]),
            Kv::Contiguous { keys, values } => (view(keys), view(values)),
        };
        let args = Args::default()
            .numbers(&[items.len(), first, resident.sequences_at, resident.pages_at])
            .float(params.sm_scale * std::f32::consts::LOG2_E)
            .numbers(&[mask, left, right])
            .numbers(&view(&self.q))
            .numbers(&k)
            .numbers(&v)
            .numbers(&self.out_strides())
            .numbers(&[bound.heads.start, bound.heads.len(), params.group_size()]);
        let (q, out) = (gpu(self.q.tensor)?, gpu(self.out)?);
        let buffers = [&resident.buffer, q, bound.keys, bound.values, out, self.lse()?, self.partial];
        self.context.run(kernel, &buffers, &args, spread(items.len()))
    }

    /// Merges the chunks of rows that several items have computed.
    fn merge(&self, bound: &Bound<'_>) -> Result<()> {
        let (params, resident) = (&self.plan.params, self.resident);
        let kernel = self.store(Specialisation::new("attention-merge", MERGE)).set("DV", params.value_dim);
        let args = Args::default()
            .numbers(&[resident.sequences_at, resident.merges_at])
            .numbers(&self.out_strides())
            .numbers(&[bound.heads.start, bound.heads.len(), params.group_size()]);
        let buffers = [&resident.buffer, self.partial, gpu(self.out)?, self.lse()?];
        let groups = [resident.merges as u32, resident.merge_rows as u32, 1];
        self.context.run(kernel, &buffers, &args, groups)
    }

    /// The lse, or something to bind in its place.
    fn lse(&self) -> Result<&GpuBuffer> {
        Ok(self.lse.map(gpu).transpose()?.unwrap_or(&self.resident.unused))
    }

    /// Whether every vector of eight keys or values lies at a multiple of eight elements.
    fn is_aligned(&self) -> bool {
        match &self.kv {
            Kv::Paged(_) => true,
            Kv::Contiguous { keys, values } => multiples(keys, 8) && multiples(values, 8),
        }
    }

    /// Sets how outputs are stored.
    fn store(&self, kernel: Specialisation) -> Specialisation {
        let (name, f32s, f16s) = match self.out.dtype() {
            DType::F16 => ("vec2<f16>", 0, 1),
            DType::Bf16 => ("u32", 0, 0),
            _ => ("vec2<f32>", 1, 0),
        };
        let lse = u32::from(self.lse.is_some());
        kernel.set("OUT", name).set("OUT_F32", f32s).set("OUT_F16", f16s).set("LSE", lse)
    }

    /// Rows between batches (0 for ragged tokens), tokens and heads.
    fn out_strides(&self) -> [usize; 3] {
        let heads = self.plan.params.num_qo_heads;
        if self.dense {
            let tokens = self.out.shape()[2];
            [heads * tokens, 1, tokens]
        } else {
            [0, heads, 1]
        }
    }
}

/// Whether every vector of a view lies at a multiple of so many elements.
fn multiples(view: &TokenView<'_>, of: usize) -> bool {
    let strides = [view.offset, view.batch_stride.unwrap_or(0), view.token_stride, view.head_stride];
    strides.iter().all(|stride| stride.is_multiple_of(of))
}

/// The kernel in f32.
fn fma_kernel(params: &AttentionParams, stored: DType) -> Specialisation {
    let (kv_type, kv_words, kv_f16) = words(stored);
    let rows = fma_rows(params);
    Specialisation::new("attention-fma", FMA)
        .set("ROWS", rows)
        .set("D", params.head_dim)
        .set("DV", params.value_dim)
        .set("PAIRS", (rows * params.value_dim / 2).div_ceil(128))
        .set("PARTIAL", "f32")
        .set("KV", kv_type)
        .set("KV_WORDS", kv_words)
        .set("KV_F16", kv_f16)
}

/// The kernel for matrix units.
fn matrix_kernel(
    params: &AttentionParams,
    shape: MatrixShape,
    path: Path,
    stored: DType,
    aligned: bool,
) -> Specialisation {
    let (tile, keys, threads) = (shape.tile, shape.keys, shape.threads());
    let (key_tiles, value_tiles) =
        (params.head_dim.div_ceil(tile), params.value_dim.div_ceil(tile * shape.split));
    let loads = |tiles: usize| (keys * tiles * tile / 8).div_ceil(threads);
    let lanes = shape.subgroup / tile;
    let vector = shape.vector();
    let partial = match path {
        Path::Prefill if vector == 4 => "vec4<f32>",
        Path::Prefill => "vec2<f32>",
        Path::Decode => "f32",
    };
    let (k_row, v_row) = (key_tiles * tile + 8, value_tiles * shape.split * tile + 8);
    in_memory(shape, [k_row, v_row])
        .set("T", tile)
        .set("KEYS", keys)
        .set("LOOK", shape.look)
        .set("THREADS", threads)
        .set("R", shape.row_tiles)
        .set("SPLIT", shape.split)
        .set("LANES", lanes)
        .set("D", params.head_dim)
        .set("DV", params.value_dim)
        .set("DT", key_tiles)
        .set("VT", value_tiles)
        .set("K_ROW", k_row)
        .set("V_ROW", v_row)
        .set("S_ROW", shape.score_row())
        .set("F", vector)
        .set("PARTIAL", partial)
        .set("K_LOADS", loads(key_tiles))
        .set("V_LOADS", loads(value_tiles * shape.split))
        .set("KV", if aligned { "vec4<u32>" } else { "u32" })
        .set("ALIGNED", u32::from(aligned))
        .set("KV_WORDS", 0)
        .set("KV_F16", u32::from(stored == DType::F16))
}

/// A kernel with what it keeps in workgroup memory: rows of keys and of values take so many elements.
fn in_memory(shape: MatrixShape, [k_row, v_row]: [usize; 2]) -> Specialisation {
    let (tile, keys, vector) = (shape.tile, shape.keys, shape.vector());
    let width = |vector: usize| if shape.wide { vector } else { 1 };
    match shape.elements {
        // Keys and values are in one array of four words each.
        Some(elements) => Specialisation::new("attention-elements", ELEMENTS)
            .set("ELEMENTS", 1)
            .set("ROWS", elements.firsts().count())
            .set("LANE_BITS", elements.lane_bits())
            .set("COUNT", elements.count())
            .set("WIDTH", elements.width())
            // Vectors of the maxima and sums of a thread's rows.
            .set("STATE", elements.firsts().count().div_ceil(2))
            .set("P", "f32")
            .set("TILE", (keys * (k_row + v_row)).max(shape.subgroups() * tile * shape.score_row()) / 8)
            .set("P_TILE", "tile")
            .set("PW", 8)
            .set("V_AT", keys * k_row / 8)
            .set("K_TILE", "tile")
            .set("V_TILE", "tile")
            .set("KW", 8),
        None => Specialisation::new("attention-matrix", MATRIX)
            .set("ELEMENTS", 0)
            .set("P_TILE", "p_tile")
            .set("WIDE", u32::from(shape.wide))
            .set("SUBGROUPS", shape.subgroups())
            .set("LOG_LANES", (shape.subgroup / tile).ilog2())
            .set("P", "f16")
            .set("V_AT", 0)
            .set("K_TILE", "k_tile")
            .set("V_TILE", "v_tile")
            .set("KW", width(4))
            .set("SW", width(vector))
            .set("PW", width(vector)),
    }
}

const MATRIX: &str = concat!(
    "enable f16;\nenable wgpu_cooperative_matrix;\n",
    include_str!("launch.wgsl"),
    include_str!("attention_rows.wgsl"),
    include_str!("attention_matrix.wgsl"),
    include_str!("items.wgsl"),
    include_str!("keys.wgsl"),
    include_str!("state.wgsl")
);

const ELEMENTS: &str = concat!(
    "enable f16;\nenable wgpu_cooperative_matrix;\n",
    include_str!("launch.wgsl"),
    include_str!("attention_elements.wgsl"),
    include_str!("attention_matrix.wgsl"),
    include_str!("items.wgsl"),
    include_str!("keys.wgsl"),
    include_str!("state.wgsl")
);

const FMA: &str = concat!(
    "#if OUT_F16\nenable f16;\n#end\n",
    include_str!("launch.wgsl"),
    include_str!("attention_fma.wgsl"),
    include_str!("items.wgsl"),
    include_str!("keys.wgsl"),
    include_str!("state.wgsl")
);

const MERGE: &str = concat!(
    "#if OUT_F16\nenable f16;\n#end\n",
    include_str!("merge.wgsl"),
    include_str!("items.wgsl"),
    include_str!("state.wgsl")
);

/// Which limits apply, and the radii.
fn mask(mask: Mask) -> (usize, usize, usize) {
    let Mask::Window { left, right, causal } = mask else {
        return (usize::from(mask == Mask::Causal), 0, 0);
    };
    let flags = usize::from(causal) + 2 * usize::from(left.is_some()) + 4 * usize::from(right.is_some());
    // Positions are below 2^31: a larger radius sees as much.
    let radius = |radius: Option<u32>| radius.unwrap_or(0).min(1 << 30) as usize;
    (flags, radius(left), radius(right))
}

/// Kernels as a GPU with these abilities launches them.
#[cfg(test)]
pub(super) fn samples(abilities: &Abilities) -> Vec<Specialisation> {
    let mut all = Vec::new();
    for (head_dim, value_dim) in [(64, 64), (128, 128), (72, 80), (256, 256), (512, 512)] {
        for (dtype, paged, aligned) in [
            (DType::F32, true, true),
            (DType::F16, true, true),
            (DType::Bf16, false, true),
            (DType::F16, false, false),
        ] {
            let params = AttentionParams::new(4, 2, head_dim).value_dim(value_dim).dtypes(DType::F32, dtype);
            for size in [Size::Large, Size::Small, Size::Window, Size::Tile, Size::ManyTiles] {
                let is_decode = matches!(size, Size::Tile | Size::ManyTiles);
                let path = if is_decode { Path::Decode } else { Path::Prefill };
                let kernel = match MatrixShape::new(abilities, &params, size) {
                    Some(shape) => matrix_kernel(&params, shape, path, dtype, aligned),
                    None => fma_kernel(&params, dtype),
                };
                let kernel = kernel.set("Q_WORDS", 0).set("Q_F16", 0);
                let q = if aligned { "vec2<f32>" } else { "f32" };
                let kernel = kernel.set("Q_PAIRS", u32::from(aligned)).set("Q", q);
                let kernel =
                    kernel.set("MERGES", u32::from(path == Path::Prefill)).set("PAGED", u32::from(paged));
                let kernel =
                    kernel.set("PAGE", 32).set("OUT", "vec2<f32>").set("OUT_F32", 1).set("OUT_F16", 0);
                all.push(kernel.set("LSE", 1));
            }
        }
    }
    let merge = Specialisation::new("attention-merge", MERGE).set("DV", 128).set("OUT", "vec2<f16>");
    all.push(merge.set("OUT_F32", 0).set("OUT_F16", 1).set("LSE", 0));
    all.extend(rotate::samples());
    all
}

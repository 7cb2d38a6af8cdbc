//! Linear layers over packed weights: one chain per output, whatever the number of rows.
//!
//! A matrix `[out, in]` is packed once into panels `[out / 16][in][16]`, lanes over output features. An output is
//! a chain of fused multiply-adds over the inputs in order, so one row and many rows agree in every bit:
//! - Up to two register tiles of rows, weights are widened in registers and memory decides. With one or two rows
//!   several panels are streamed at once, since one stream does not fill the memory's bandwidth.
//! - With more rows a slice of a panel is widened once into the first cache and used by all row tiles, which keep
//!   their chains in memory between slices.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::buffer::{HostBuffer, SharedMut, host};
use super::simd::{Element, Kernel, LANES, Level, PairedBf16, Simd, paired};
use super::threads::Pool;
use super::tile::{FLOWING, HALF, NOTHING, PACKED, Tile, row_tiles, widen, with_rows};
use crate::checks;
use crate::{DType, Error, HostTensor, Linear, Result};

/// Inputs per slice: sixteen KiB of widened weights, half of the first cache.
const SLICE: usize = 256;

/// Rows whose packed inputs are used together before the next rows are begun; they should fit the last cache.
const ROW_BLOCK: usize = 480;

/// Panels handed to a thread at once.
const PANELS: usize = 8;

/// Inputs between a weight's prefetch and its use, when memory decides.
const AHEAD: usize = 32;

/// An element type of packed weights.
trait Weight: Element + bytemuck::Pod {
    fn place(lane: usize) -> usize {
        lane
    }

    fn from_f32(x: f32) -> Self;
}

impl Weight for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
}

impl Weight for half::f16 {
    fn from_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
}

impl Weight for PairedBf16 {
    fn place(lane: usize) -> usize {
        paired(lane)
    }

    fn from_f32(x: f32) -> Self {
        Self(half::bf16::from_f32(x).to_bits())
    }
}

/// Packs matrices under each other; see [`crate::Device::pack_linear`].
pub(super) fn pack(
    pool: &Pool,
    parts: &[HostTensor<'_>],
    bias: Option<&[f32]>,
    dtype: DType,
) -> Result<Linear> {
    let (out_features, in_features) = checks::matrix_parts(parts, bias)?;
    let all_rows = |part| (0..HostTensor::rows(part)).map(move |row| (part, row));
    let rows: Vec<(&HostTensor<'_>, usize)> = parts.iter().flat_map(all_rows).collect();
    let len = out_features.next_multiple_of(LANES) * in_features;
    let mut buffer = HostBuffer::zeroed(len * dtype.size())?;
    match dtype {
        DType::F32 => pack_rows::<f32>(pool, &rows, in_features, buffer.slice_mut()),
        DType::F16 => pack_rows::<half::f16>(pool, &rows, in_features, buffer.slice_mut()),
        DType::Bf16 => pack_rows::<PairedBf16>(pool, &rows, in_features, buffer.slice_mut()),
        DType::U32 => return Err(Error::unsupported("pack_linear", "u32 weights")),
    }
    Ok(Linear { out_features, in_features, dtype, bias: None, buffer: Box::new(buffer) })
}

fn pack_rows<T: Weight>(
    pool: &Pool,
    rows: &[(&HostTensor<'_>, usize)],
    in_features: usize,
    packed: &mut [T],
) {
    let panels = rows.len().div_ceil(LANES);
    let packed = SharedMut::new(packed);
    pool.run(panels.div_ceil(PANELS), &|_, item| {
        for panel in item * PANELS..((item + 1) * PANELS).min(panels) {
            // SAFETY: every panel belongs to one item.
            let to = unsafe { packed.get(panel * in_features * LANES, in_features * LANES) };
            let rows = &rows[panel * LANES..rows.len().min((panel + 1) * LANES)];
            let stored: Vec<&[T]> = rows.iter().filter_map(|row| stored_row(row, in_features)).collect();
            if stored.len() == rows.len() {
                pack_stored(&stored, to);
            } else {
                pack_converted(rows, in_features, to);
            }
        }
    });
}

/// A row of a matrix whose elements are stored, and aligned, as they are packed.
fn stored_row<'a, T: Weight>((part, row): &(&HostTensor<'a>, usize), in_features: usize) -> Option<&'a [T]> {
    let bytes = in_features * part.dtype.size();
    let row = &part.bytes[row * bytes..(row + 1) * bytes];
    if is_stored_as::<T>(part.dtype) { bytemuck::try_cast_slice(row).ok() } else { None }
}

/// Packs a panel of at most sixteen rows that need no conversion.
fn pack_stored<T: Weight>(rows: &[&[T]], to: &mut [T]) {
    let Some(first) = rows.first() else { return };
    if rows.len() < LANES {
        for (lane, row) in rows.iter().enumerate() {
            to.iter_mut().skip(T::place(lane)).step_by(LANES).zip(*row).for_each(|(to, x)| *to = *x);
        }
        return;
    }
    let mut from = [*first; LANES];
    for (lane, row) in rows.iter().enumerate() {
        from[T::place(lane)] = row;
    }
    // All lanes of an input at once: the stores are whole lines, the loads sixteen streams.
    for (k, to) in to.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        for (to, from) in to.iter_mut().zip(&from) {
            *to = from[k];
        }
    }
}

/// Packs a panel of elements that are converted.
fn pack_converted<T: Weight>(rows: &[(&HostTensor<'_>, usize)], in_features: usize, to: &mut [T]) {
    for (lane, (part, row)) in rows.iter().enumerate() {
        let size = part.dtype.size();
        let from = part.bytes[row * in_features * size..(row + 1) * in_features * size].chunks_exact(size);
        let to = to.iter_mut().skip(T::place(lane)).step_by(LANES);
        to.zip(from).for_each(|(to, x)| *to = T::from_f32(widen_bytes(x, part.dtype)));
    }
}

fn is_stored_as<T: 'static>(dtype: DType) -> bool {
    use std::any::TypeId;
    let stored = match dtype {
        DType::F32 => TypeId::of::<f32>(),
        DType::F16 => TypeId::of::<half::f16>(),
        DType::Bf16 => TypeId::of::<PairedBf16>(),
        DType::U32 => TypeId::of::<u32>(),
    };
    stored == TypeId::of::<T>()
}

fn widen_bytes(x: &[u8], dtype: DType) -> f32 {
    match (dtype, x) {
        (DType::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (DType::Bf16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => f32::NAN,
    }
}

/// One row of the matrix, widened: an embedding.
pub(super) fn matrix_row(weight: &Linear, row: usize, out: &mut [f32]) -> Result<()> {
    fn gather<T: Weight>(packed: &[T], row: usize, out: &mut [f32], widen: impl Fn(T) -> f32) {
        let panel = &packed[row / LANES * LANES * out.len()..][..LANES * out.len()];
        let lane = T::place(row % LANES);
        out.iter_mut().zip(panel.chunks_exact(LANES)).for_each(|(o, lanes)| *o = widen(lanes[lane]));
    }
    let buffer = host(&*weight.buffer)?;
    match weight.dtype {
        DType::F16 => gather(buffer.slice(), row, out, |x: half::f16| x.to_f32()),
        DType::Bf16 => gather(buffer.slice(), row, out, |x: PairedBf16| f32::from_bits(u32::from(x.0) << 16)),
        _ => gather(buffer.slice(), row, out, |x: f32| x),
    }
    Ok(())
}

/// What a product adds to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    /// Nothing: the output is overwritten.
    Zero,
    /// The output's own contents, which begin the chains.
    Out,
}

/// Where products run, and the memory in which they pack their inputs.
pub(super) struct Launch<'a> {
    pub level: Level,
    pub pool: &'a Pool,
    pub packed: &'a Mutex<Vec<f32>>,
}

impl Launch<'_> {
    /// `out = onto + x W^T + bias` for `[rows, in]` inputs and `[rows, out]` outputs.
    pub(super) fn linear(
        &self,
        weight: &Linear,
        bias: Option<&[f32]>,
        x: &[f32],
        out: &mut [f32],
        onto: Onto,
    ) -> Result<()> {
        let buffer = host(&*weight.buffer)?;
        match weight.dtype {
            DType::F32 => self.typed::<f32>(buffer.slice(), weight, bias, x, (out, onto)),
            DType::F16 => self.typed::<half::f16>(buffer.slice(), weight, bias, x, (out, onto)),
            DType::Bf16 => self.typed::<PairedBf16>(buffer.slice(), weight, bias, x, (out, onto)),
            DType::U32 => return Err(Error::unsupported("linear", "u32 weights")),
        }
        Ok(())
    }

    fn typed<T: Weight>(
        &self,
        weights: &[T],
        weight: &Linear,
        bias: Option<&[f32]>,
        x: &[f32],
        (out, onto): (&mut [f32], Onto),
    ) {
        let (inputs, outputs) = (weight.in_features, weight.out_features);
        let rows = x.len() / inputs;
        let max_rows = self.level.max_rows();
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let x = if rows == 1 { x } else { self.pack_inputs(x, rows, inputs, &mut packed) };
        let product = Product { x, bias, inputs, outputs, rows, onto, out: SharedMut::new(out) };
        let chunks = outputs.div_ceil(LANES).div_ceil(PANELS);
        let blocks = rows.div_ceil(ROW_BLOCK);
        let tiles = rows.div_ceil(max_rows);
        self.pool.run(chunks * blocks, &|_, item| {
            let (block, chunk) = (item / chunks, item % chunks);
            let panels = chunk * PANELS..((chunk + 1) * PANELS).min(outputs.div_ceil(LANES));
            let tiles = block * tiles / blocks..(block + 1) * tiles / blocks;
            self.level.run(RunPanels { product: &product, weights, panels, tiles });
        });
    }

    /// Packs inputs into tiles `[in][rows]`.
    fn pack_inputs<'a>(&self, x: &[f32], rows: usize, inputs: usize, packed: &'a mut Vec<f32>) -> &'a [f32] {
        if packed.len() < x.len() {
            packed.resize(x.len(), 0.0);
        }
        let to = SharedMut::new(&mut packed[..x.len()]);
        let tiles: Vec<Range<usize>> = row_tiles(rows, self.level.max_rows()).collect();
        self.pool.run(tiles.len(), &|_, tile| {
            let tile = tiles[tile].clone();
            // SAFETY: every tile belongs to one item.
            let to = unsafe { to.get(tile.start * inputs, tile.len() * inputs) };
            for (r, row) in tile.clone().enumerate() {
                let from = &x[row * inputs..(row + 1) * inputs];
                to[r..].iter_mut().step_by(tile.len()).zip(from).for_each(|(to, x)| *to = *x);
            }
        });
        &packed[..x.len()]
    }
}

/// One product; the pieces share it.
struct Product<'a> {
    /// Tiles `[in][rows]`.
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    inputs: usize,
    outputs: usize,
    rows: usize,
    onto: Onto,
    out: SharedMut<f32>,
}

/// Some panels of a product for some of its row tiles.
struct RunPanels<'a, T> {
    product: &'a Product<'a>,
    weights: &'a [T],
    panels: Range<usize>,
    tiles: Range<usize>,
}

impl<T: Weight> Kernel for RunPanels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { product, weights, panels, tiles } = self;
        if product.rows <= S::MAX_ROWS {
            stream(simd, product, weights, panels);
        } else if product.rows <= 2 * S::MAX_ROWS {
            for panel in panels {
                stream_twice(simd, product, weights, panel);
            }
        } else {
            for panel in panels {
                sliced(simd, product, weights, panel, tiles.clone());
            }
        }
    }
}

/// One register tile of rows: widen in registers, several panels at once.
#[inline(always)]
fn stream<S: Simd, T: Weight>(simd: S, product: &Product<'_>, weights: &[T], panels: Range<usize>) {
    let mut panel = panels.start;
    while panel < panels.end {
        let left = panels.end - panel;
        let done = with_rows!(product.rows, R => {
            if R > S::MAX_ROWS {
                left
            } else if left >= 4 && R == 1 {
                stream_panels::<S, T, R, 4>(simd, product, weights, panel, 0)
            } else if left >= 2 && R == 2 {
                stream_panels::<S, T, R, 2>(simd, product, weights, panel, 0)
            } else {
                stream_panels::<S, T, R, 1>(simd, product, weights, panel, 0)
            }
        });
        panel += done;
    }
}

/// `P` panels for the tile of `R` rows from `first_row` on.
#[inline(always)]
fn stream_panels<S: Simd, T: Weight, const R: usize, const P: usize>(
    simd: S,
    product: &Product<'_>,
    weights: &[T],
    panel: usize,
    first_row: usize,
) -> usize {
    let inputs = product.inputs;
    let mut chains = [[[0.0f32; LANES]; P]; R];
    for (r, row) in chains.iter_mut().enumerate() {
        for (p, chain) in row.iter_mut().enumerate() {
            product.begin(first_row + r, panel + p, chain);
        }
    }
    let b: [*const T; P] =
        std::array::from_fn(|p| weights[(panel + p) * inputs * LANES..][..inputs * LANES].as_ptr());
    simd.vectorize(Tile::<T, R, P, PACKED, LANES, FLOWING> {
        a: product.x[first_row * inputs..][..R * inputs].as_ptr(),
        b,
        b_step: LANES,
        len: inputs,
        c: chains.as_mut_ptr().cast(),
        c_row: P * LANES,
        c_panel: LANES,
        from_zero: false,
        ahead: std::array::from_fn(|p| b[p].wrapping_add(AHEAD * LANES).cast()),
    });
    for (r, row) in chains.iter().enumerate() {
        for (p, chain) in row.iter().enumerate() {
            product.end(first_row + r, panel + p, chain);
        }
    }
    P
}

/// Two register tiles of rows: the second finds a slice of the panel in the first cache, where widening it again costs
/// less than storing it would have. Each prefetches a half of the next slice, so that memory is never idle.
#[inline(always)]
fn stream_twice<S: Simd, T: Weight>(simd: S, product: &Product<'_>, weights: &[T], panel: usize) {
    let inputs = product.inputs;
    let mut chains = [[0.0f32; LANES]; 2 * 8];
    for (row, chain) in chains.iter_mut().enumerate().take(product.rows) {
        product.begin(row, panel, chain);
    }
    for k in (0..inputs).step_by(SLICE) {
        let len = SLICE.min(inputs - k);
        let slice = weights[(panel * inputs + k) * LANES..][..len * LANES].as_ptr();
        for tile in row_tiles(product.rows, S::MAX_ROWS) {
            let a = product.x[tile.start * inputs + k * tile.len()..][..len * tile.len()].as_ptr();
            let c = chains[tile.clone()].as_mut_ptr().cast();
            let half = if tile.start == 0 { 0 } else { len / 2 };
            let ahead = [slice.wrapping_add((len + half) * LANES).cast()];
            // `a` is at the first input of a tile `[in][rows]`, the slice has `len` groups, `c` is `[rows][16]`.
            with_rows!(tile.len(), R => simd.vectorize(Tile::<T, R, 1, PACKED, LANES, HALF> {
                a, b: [slice], b_step: LANES, len, c, c_row: LANES, c_panel: 0, from_zero: false, ahead,
            }));
        }
    }
    for (row, chain) in chains.iter().enumerate().take(product.rows) {
        product.end(row, panel, chain);
    }
}

/// Many rows: widen a slice of the panel, use it for every tile, and keep the chains in memory between slices.
#[inline(always)]
fn sliced<S: Simd, T: Weight>(
    simd: S,
    product: &Product<'_>,
    weights: &[T],
    panel: usize,
    tiles: Range<usize>,
) {
    let inputs = product.inputs;
    let mut widened = Aligned([0.0f32; SLICE * LANES]);
    let mut chains = Aligned([0.0f32; (ROW_BLOCK + 16) * LANES]);
    for k in (0..inputs).step_by(SLICE) {
        let len = SLICE.min(inputs - k);
        let slice = weights[(panel * inputs + k) * LANES..][..len * LANES].as_ptr();
        for i in 0..len {
            // SAFETY: the slice has `len` groups of sixteen, `widened` room for them.
            unsafe { widen(simd, slice.add(i * LANES), widened.0.as_mut_ptr().add(i * LANES)) };
        }
        let next = slice.wrapping_add(len * LANES).cast::<u8>();
        let next = (next, SLICE * LANES * size_of::<T>());
        let inputs = k..k + len;
        let (widened, chains) = (&widened.0, &mut chains.0);
        simd.vectorize(UseSlice { product, panel, tiles: tiles.clone(), inputs, widened, chains, next });
    }
}

/// A slice of a panel for all row tiles.
struct UseSlice<'a> {
    product: &'a Product<'a>,
    panel: usize,
    tiles: Range<usize>,
    inputs: Range<usize>,
    /// `[inputs][16]`.
    widened: &'a [f32],
    /// The tiles' chains, `[rows][16]`.
    chains: &'a mut [f32],
    /// The weights to prefetch meanwhile, and their bytes.
    next: (*const u8, usize),
}

impl Kernel for UseSlice<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { product, panel, tiles, inputs, widened, chains, next } = self;
        let all = row_tiles(product.rows, S::MAX_ROWS);
        let mut at = 0;
        for (index, tile) in all.enumerate().take(tiles.end).skip(tiles.start) {
            let share = |index: usize| index * (next.1 / 64) / tiles.len() * 64;
            for line in (share(index - tiles.start)..share(index + 1 - tiles.start)).step_by(64) {
                simd.prefetch(next.0.wrapping_add(line));
            }
            let own = &mut chains[at..at + tile.len() * LANES];
            at += own.len();
            let x = product.x[tile.start * product.inputs + inputs.start * tile.len()..].as_ptr();
            if inputs.start == 0 {
                for (chain, row) in own.as_chunks_mut().0.iter_mut().zip(tile.clone()) {
                    product.begin(row, panel, chain);
                }
            }
            let (c, len) = (own.as_mut_ptr(), inputs.len());
            // `x` is at the first input of a tile `[in][rows]`, `widened` holds the slice, `c` is `[rows][16]`.
            with_rows!(tile.len(), R => simd.vectorize(Tile::<f32, R, 1, PACKED, LANES, NOTHING> {
                a: x, b: [widened.as_ptr()], b_step: LANES, len, c, c_row: LANES, c_panel: 0, from_zero: false,
                ahead: [std::ptr::null()],
            }));
            if inputs.end == product.inputs {
                for (chain, row) in own.as_chunks().0.iter().zip(tile) {
                    product.end(row, panel, chain);
                }
            }
        }
    }
}

#[repr(align(64))]
struct Aligned<const N: usize>([f32; N]);

impl Product<'_> {
    /// The outputs of a panel that exist.
    fn lanes(&self, panel: usize) -> usize {
        (self.outputs - panel * LANES).min(LANES)
    }

    /// The beginning of a row's chains.
    #[inline(always)]
    fn begin(&self, row: usize, panel: usize, chain: &mut [f32; LANES]) {
        if self.onto == Onto::Zero {
            *chain = [0.0; LANES];
        } else {
            // SAFETY: every row and panel is computed by one item.
            let out = unsafe { self.out.get(row * self.outputs + panel * LANES, self.lanes(panel)) };
            chain[..out.len()].copy_from_slice(out);
        }
    }

    /// Adds the bias and writes a row's outputs.
    #[inline(always)]
    fn end(&self, row: usize, panel: usize, chain: &[f32; LANES]) {
        // SAFETY: every row and panel is computed by one item.
        let out = unsafe { self.out.get(row * self.outputs + panel * LANES, self.lanes(panel)) };
        if out.len() == LANES {
            out.copy_from_slice(chain);
        } else {
            out.copy_from_slice(&chain[..out.len()]);
        }
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[panel * LANES..]).for_each(|(out, bias)| *out += bias);
        }
    }
}

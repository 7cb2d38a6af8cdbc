//! Matrices on the device: rows in their type, padded, in parts that a kernel can see whole.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;

use super::context::Context;
use super::linear;
use super::memory::GpuBuffer;
use crate::{DType, DeviceBuffer, Error, HostTensor, Linear, Result, checks};

/// Inputs are padded with zeros to a multiple of this.
pub(super) const STEP: usize = 32;

/// Bytes uploaded between two waits: what the host holds twice at most.
const UPLOAD: usize = 64 << 20;

/// A matrix `[outputs, stride]` in parts that a kernel can see whole: row-major, or tiles row-major and each in the order in
/// which threads hold its elements.
pub(super) struct Matrix {
    pub parts: Vec<Part>,
    /// Elements between rows.
    pub stride: usize,
    /// `f32` or `f16`.
    pub dtype: &'static str,
    /// Of a matrix in tiles: where the elements of a tile, row by row, are in it, in words.
    pub order: Option<GpuBuffer>,
}

impl Matrix {
    pub(super) fn of(linear: &Linear) -> Result<&Self> {
        (&*linear.buffer as &dyn std::any::Any)
            .downcast_ref()
            .ok_or_else(|| Error::shape("linear", "the matrix belongs to another device than the gpu"))
    }

    pub(super) fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.outputs).sum()
    }
}

/// Some rows of a matrix.
pub(super) struct Part {
    pub first: usize,
    pub outputs: usize,
    pub weights: GpuBuffer,
    /// A power of two for each output: what its row is multiplied by.
    pub scales: GpuBuffer,
}

impl DeviceBuffer for Matrix {}

/// Packs matrices under each other; see [`crate::Device::pack_linear`].
pub(super) fn pack(
    context: &Arc<Context>,
    parts: &[HostTensor<'_>],
    bias: Option<&[f32]>,
    dtype: DType,
) -> Result<Linear> {
    let (out_features, in_features) = checks::matrix_parts(parts, bias)?;
    let (size, name) = match dtype {
        DType::F32 => (4, "f32"),
        DType::F16 | DType::Bf16 => (2, "f16"),
        DType::U32 => return Err(Error::unsupported("pack_linear", "u32 weights")),
    };
    let stride = in_features.next_multiple_of(STEP);
    let order = Order::of(context, dtype, in_features);
    let most = context.abilities.binding as usize / (stride * size) / 128 * 128;
    if most == 0 {
        return Err(Error::OutOfMemory { what: "rows of a matrix".to_owned(), bytes: 128 * stride * size });
    }
    let all_rows = |part| (0..HostTensor::rows(part)).map(move |row| (part, row));
    let rows: Vec<(&HostTensor<'_>, usize)> = parts.iter().flat_map(all_rows).collect();
    let places = order.as_ref().map(|order| order.upload(context)).transpose()?;
    let mut matrix = Matrix { parts: Vec::new(), stride, dtype: name, order: places };
    for (index, rows) in rows.chunks(most).enumerate() {
        let bytes = rows.len().next_multiple_of(16) * stride * size; // whole tiles
        let what = || format!("a matrix of {} rows", rows.len());
        let weights = GpuBuffer::new(context, what, bytes as u64)?;
        let mut scales = Vec::with_capacity(rows.len());
        let chunk = (UPLOAD / (stride * size)).max(1).next_multiple_of(16); // whole tiles
        for (at, rows) in (0..).step_by(chunk).zip(rows.chunks(chunk)) {
            let tile = order.as_ref().map_or(1, |order| order.tile);
            let mut packed = vec![0u32; rows.len().next_multiple_of(tile) * stride * size / 4];
            let packed: &mut [u8] = bytemuck::cast_slice_mut(&mut packed);
            let to = (stride * size, order.as_ref());
            scales.extend(pack_rows(rows, in_features, dtype, to, packed));
            context.write(&weights, (at * stride * size) as u64, packed)?;
            if rows.len() == chunk {
                context.flush_writes()?;
            }
        }
        let on_device = GpuBuffer::new(context, what, scales.len() as u64 * 4)?;
        context.write(&on_device, 0, bytemuck::cast_slice(&scales))?;
        matrix.parts.push(Part { first: index * most, outputs: rows.len(), weights, scales: on_device });
    }
    Ok(Linear { out_features, in_features, dtype, bias: None, buffer: Box::new(matrix) })
}

/// Converts rows on all cores and returns what each is to be multiplied by.
fn pack_rows(
    rows: &[(&HostTensor<'_>, usize)],
    width: usize,
    dtype: DType,
    (stride, order): (usize, Option<&Order>),
    packed: &mut [u8],
) -> Vec<f32> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).next_multiple_of(64);
    let mut scales = vec![1.0; rows.len()];
    std::thread::scope(|scope| {
        let jobs = rows.chunks(share).zip(packed.chunks_mut(share * stride)).zip(scales.chunks_mut(share));
        for ((rows, packed), scales) in jobs {
            scope.spawn(move || {
                let mut wide = vec![0.0f32; width];
                for (((tensor, row), packed), scale) in
                    rows.iter().zip(packed.chunks_mut(stride)).zip(scales.iter_mut())
                {
                    widen_row(tensor, *row, &mut wide);
                    *scale = pack_row(&mut wide, dtype, packed);
                }
                if let Some(order) = order {
                    order.apply(bytemuck::cast_slice_mut(packed), stride / 2);
                }
            });
        }
    });
    scales
}

/// The order of the elements of tiles of f16.
struct Order {
    /// Rows and columns of a tile.
    tile: usize,
    /// Where each comes from, in the tile row by row.
    from: Vec<usize>,
}

impl Order {
    /// That of matrices which matrix units take, where the device says who holds which element.
    fn of(context: &Context, dtype: DType, in_features: usize) -> Option<Self> {
        let abilities = &context.abilities;
        let tile = abilities.matrix_tile? as usize;
        let weights = abilities.elements.as_ref()?.weights()?;
        let from = weights[..tile * tile].iter().map(|&place| usize::from(place)).collect();
        (linear::input(abilities, dtype, in_features) == DType::F16).then_some(Self { tile, from })
    }

    /// Where elements are in a tile of this order.
    fn upload(&self, context: &Arc<Context>) -> Result<GpuBuffer> {
        let mut places = vec![0u32; self.from.len()];
        (0..).zip(&self.from).for_each(|(at, &from)| places[from] = at);
        let buffer = GpuBuffer::new(context, || "the order of a tile".to_owned(), 4 * places.len() as u64)?;
        context.write(&buffer, 0, bytemuck::cast_slice(&places))?;
        Ok(buffer)
    }

    /// Orders whole rows of tiles of a row-major matrix.
    fn apply(&self, packed: &mut [u16], stride: usize) {
        let places = self.from.iter().map(|place| place / self.tile * stride + place % self.tile);
        let places: Vec<usize> = places.collect();
        let mut rows = vec![0u16; self.tile * stride];
        for packed in packed.chunks_exact_mut(rows.len()) {
            rows.copy_from_slice(packed);
            for (first, tile) in (0..).step_by(self.tile).zip(packed.chunks_exact_mut(places.len())) {
                tile.iter_mut().zip(&places).for_each(|(to, place)| *to = rows[first + place]);
            }
        }
    }
}

fn widen_row(tensor: &HostTensor<'_>, row: usize, wide: &mut [f32]) {
    let size = tensor.dtype.size();
    let bytes = &tensor.bytes[row * wide.len() * size..][..wide.len() * size];
    match tensor.dtype {
        DType::F16 => {
            let pairs = bytes.as_chunks::<2>().0;
            wide.iter_mut().zip(pairs).for_each(|(x, b)| *x = half::f16::from_ne_bytes(*b).to_f32());
        }
        DType::Bf16 => {
            let pairs = bytes.as_chunks::<2>().0;
            wide.iter_mut().zip(pairs).for_each(|(x, b)| *x = half::bf16::from_ne_bytes(*b).to_f32());
        }
        _ => {
            let fours = bytes.as_chunks::<4>().0;
            wide.iter_mut().zip(fours).for_each(|(x, b)| *x = f32::from_ne_bytes(*b));
        }
    }
}

/// Stores a row as its type; returns what it is to be multiplied by.
///
/// bf16 is held in f16 times a power of two that brings the row's largest element to the top of f16's range: every
/// element within 2^-29 of the largest is then exact, and others are off by 2^-40 of the largest at most.
fn pack_row(wide: &mut [f32], dtype: DType, packed: &mut [u8]) -> f32 {
    if dtype == DType::F32 {
        packed[..wide.len() * 4].copy_from_slice(bytemuck::cast_slice(wide));
        return 1.0;
    }
    let mut scale = 1.0;
    if dtype == DType::Bf16 {
        wide.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        let largest = wide.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        if largest > 0.0 && largest.is_finite() {
            let exponent = (largest.to_bits() >> 23) as i32 - 127;
            let shift = (14 - exponent).clamp(-126, 126);
            let up = f32::from_bits(((127 + shift) as u32) << 23);
            wide.iter_mut().for_each(|x| *x *= up);
            scale = f32::from_bits(((127 - shift) as u32) << 23);
        }
    }
    let mut halves = vec![half::f16::ZERO; wide.len()];
    halves.convert_from_f32_slice(wide);
    packed[..wide.len() * 2].copy_from_slice(bytemuck::cast_slice(&halves));
    scale
}

//! Matrices on the device: rows in their type, padded, in parts that a kernel can see whole.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;

use super::context::Context;
use super::memory::GpuBuffer;
use crate::{DType, DeviceBuffer, Error, HostTensor, Linear, Result, checks};

/// Inputs are padded with zeros to a multiple of this.
pub(super) const STEP: usize = 32;

/// Bytes uploaded between two waits: what the host holds twice at most.
const UPLOAD: usize = 64 << 20;

/// A matrix `[outputs, stride]`, row-major, in parts that a kernel can see whole.
pub(super) struct Matrix {
    pub parts: Vec<Part>,
    /// Elements between rows.
    pub stride: usize,
    /// `f32` or `f16`.
    pub dtype: &'static str,
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
    let most = context.abilities.binding as usize / (stride * size) / 128 * 128;
    if most == 0 {
        return Err(Error::OutOfMemory { what: "rows of a matrix".to_owned(), bytes: 128 * stride * size });
    }
    let all_rows = |part| (0..HostTensor::rows(part)).map(move |row| (part, row));
    let rows: Vec<(&HostTensor<'_>, usize)> = parts.iter().flat_map(all_rows).collect();
    let mut matrix = Matrix { parts: Vec::new(), stride, dtype: name };
    for (index, rows) in rows.chunks(most).enumerate() {
        let bytes = rows.len().next_multiple_of(16) * stride * size; // whole tiles
        let what = || format!("a matrix of {} rows", rows.len());
        let weights = GpuBuffer::new(context, what, bytes as u64)?;
        let mut scales = Vec::with_capacity(rows.len());
        let chunk = (UPLOAD / (stride * size)).max(1);
        for (at, rows) in (0..).step_by(chunk).zip(rows.chunks(chunk)) {
            let mut packed = vec![0u8; rows.len() * stride * size];
            scales.extend(pack_rows(rows, in_features, dtype, stride * size, &mut packed));
            context.write(&weights, (at * stride * size) as u64, &packed)?;
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
    stride: usize,
    packed: &mut [u8],
) -> Vec<f32> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(64);
    let mut scales = vec![1.0; rows.len()];
    std::thread::scope(|scope| {
        let jobs = rows.chunks(share).zip(packed.chunks_mut(share * stride)).zip(scales.chunks_mut(share));
        for ((rows, packed), scales) in jobs {
            scope.spawn(move || {
                let mut wide = vec![0.0f32; width];
                for (((tensor, row), packed), scale) in rows.iter().zip(packed.chunks_mut(stride)).zip(scales)
                {
                    widen_row(tensor, *row, &mut wide);
                    *scale = pack_row(&mut wide, dtype, packed);
                }
            });
        }
    });
    scales
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

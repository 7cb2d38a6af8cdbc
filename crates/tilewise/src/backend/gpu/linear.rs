//! Matrices on the device, and products with them.

use std::sync::Arc;

use half::slice::HalfFloatSliceExt;

use super::context::{Abilities, Context};
use super::memory::{GpuBuffer, Scratch, ScratchGuard, gpu};
use super::pipeline::Specialisation;
use super::rows::{Args, spread, wgsl};
use crate::{DType, DeviceBuffer, Error, HostTensor, Linear, Result, Tensor, checks};

/// Inputs are padded with zeros to a multiple of this.
pub(super) const STEP: usize = 32;

/// Bytes uploaded between two waits: what the host holds twice at most.
const UPLOAD: usize = 64 << 20;

/// A matrix `[outputs, stride]`, row-major, in parts that a kernel can see whole.
pub(super) struct Matrix {
    parts: Vec<Part>,
    /// Elements between rows.
    stride: usize,
    /// `f32` or `f16`.
    dtype: &'static str,
}

impl Matrix {
    fn outputs(&self) -> usize {
        self.parts.iter().map(|part| part.outputs).sum()
    }
}

/// Some rows of a matrix.
struct Part {
    first: usize,
    outputs: usize,
    weights: GpuBuffer,
    /// A power of two for each output: what its row is multiplied by.
    scales: GpuBuffer,
}

impl DeviceBuffer for Matrix {}

fn matrix(linear: &Linear) -> Result<&Matrix> {
    (&*linear.buffer as &dyn std::any::Any)
        .downcast_ref()
        .ok_or_else(|| Error::shape("linear", "the matrix belongs to another device than the gpu"))
}

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

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    Zero,
    Out,
}

/// Rows up to which a work group has all of them.
const MANY: usize = 64;

/// What inputs are rounded to.
pub(super) fn input(abilities: &Abilities, weights: DType, in_features: usize) -> DType {
    match weights {
        DType::F16 | DType::Bf16 if abilities.matrix_tile.is_some() && in_features.is_multiple_of(STEP) => {
            DType::F16
        }
        _ => DType::F32,
    }
}

/// `out = x W^T + bias`, or `out +=` it.
///
/// Matrix units take f16: `x` is rounded to it, to the nearest.
pub(super) fn product(
    context: &Arc<Context>,
    scratch: &Scratch,
    weight: &Linear,
    x: &Tensor,
    (out, onto): (&Tensor, Onto),
) -> Result<()> {
    checks::linear(weight, x, out)?;
    if x.rows() == 0 {
        return Ok(());
    }
    let matrix = matrix(weight)?;
    let bias = weight.bias.as_ref().map(gpu).transpose()?;
    let call = Product { context, matrix, bias, x, out, onto };
    match (context.abilities.matrix_tile, context.abilities.subgroup) {
        (Some(tile), Some(subgroup))
            if input(&context.abilities, weight.dtype, x.row_len()) == DType::F16 =>
        {
            call.on_matrix_units(scratch, tile as usize, subgroup as usize)
        }
        _ => call.by_multiply_adds(),
    }
}

/// `out = silu(gate) * up` of the halves of `x W^T`, in one launch; says whether it can.
pub(super) fn gated(
    context: &Arc<Context>,
    scratch: &Scratch,
    weight: &Linear,
    x: &Tensor,
    out: &Tensor,
) -> Result<bool> {
    let matrix = matrix(weight)?;
    let (Some(tile), Some(subgroup)) = (context.abilities.matrix_tile, context.abilities.subgroup) else {
        return Ok(false);
    };
    let rounded = input(&context.abilities, weight.dtype, x.row_len()) == DType::F16;
    if !rounded || matrix.parts.len() != 1 || weight.bias.is_some() || subgroup > tile * tile {
        return Ok(false);
    }
    if x.rows() > 0 {
        let call = Product { context, matrix, bias: None, x, out, onto: Onto::Zero };
        call.gated_on_matrix_units(scratch, tile as usize, subgroup as usize)?;
    }
    Ok(true)
}

/// One product with all parts of a matrix.
struct Product<'a> {
    context: &'a Arc<Context>,
    matrix: &'a Matrix,
    bias: Option<&'a GpuBuffer>,
    x: &'a Tensor,
    out: &'a Tensor,
    onto: Onto,
}

impl Product<'_> {
    fn by_multiply_adds(&self) -> Result<()> {
        let (from, to) = (wgsl("linear", self.x)?, wgsl("linear", self.out)?);
        let tile_rows = if self.x.rows() <= 16 { 16 } else { 64 };
        let chained = self.onto == Onto::Out && self.matrix.dtype == "f32";
        let kernel = Specialisation::new("linear-fma", include_str!("linear_fma.wgsl"))
            .set("ROWS", tile_rows)
            .set("IN", from)
            .set("WEIGHT", self.matrix.dtype)
            .set("OUT", to)
            .set("F16", u32::from([from, to, self.matrix.dtype].contains(&"f16")))
            .set("BIAS", u32::from(self.bias.is_some()))
            .set("CHAIN_FROM_OUT", u32::from(chained))
            .set("ADD", u32::from(self.onto == Onto::Out && !chained));
        let groups = |part: &Part| [part.outputs.div_ceil(64), self.x.rows().div_ceil(tile_rows)];
        self.run(&kernel, gpu(self.x)?, groups)
    }

    fn on_matrix_units(&self, scratch: &Scratch, tile: usize, subgroup: usize) -> Result<()> {
        let rows = self.x.rows();
        let halves = self.halves(scratch)?;
        let x = self.rounded(&halves)?;
        let sizes = [rows, self.x.row_len(), self.matrix.outputs()];
        let shape = TileShape::new(&self.context.abilities, tile, sizes, Columns::Plain);
        let kernel = shape
            .kernel(tile, subgroup, &self.context.abilities)
            .set("OUT", wgsl("linear", self.out)?)
            .set("BIAS", u32::from(self.bias.is_some()))
            .set("ADD", u32::from(self.onto == Onto::Out))
            .set("SILU", 0);
        let groups =
            |part: &Part| [rows.div_ceil(shape.rows * tile), part.outputs.div_ceil(shape.columns * tile)];
        self.run(&kernel, x, groups)
    }

    fn gated_on_matrix_units(&self, scratch: &Scratch, tile: usize, subgroup: usize) -> Result<()> {
        let rows = self.x.rows();
        let halves = self.halves(scratch)?;
        let x = self.rounded(&halves)?;
        let (inputs, outputs) = (self.x.row_len(), self.matrix.outputs());
        let shape = TileShape::new(&self.context.abilities, tile, [rows, inputs, outputs], Columns::Gated);
        let kernel = shape
            .kernel(tile, subgroup, &self.context.abilities)
            .set("OUT", wgsl("linear_silu_mul", self.out)?)
            .set("BIAS", 0)
            .set("ADD", 0)
            .set("SILU", 1);
        let part = &self.matrix.parts[0];
        let buffers = [x, &part.weights, &part.scales, &part.scales, gpu(self.out)?];
        let numbers = [rows, inputs, outputs / 2, self.matrix.stride, self.out.row_len(), 0];
        let lines = (outputs / 2).div_ceil(shape.columns / 2 * tile);
        let groups = [rows.div_ceil(shape.rows * tile) as u32, lines as u32, 1];
        self.context.run(kernel, &buffers, &Args::default().numbers(&numbers), groups)
    }

    fn rounded<'b>(&'b self, halves: &'b Option<ScratchGuard<'_>>) -> Result<&'b GpuBuffer> {
        halves.as_ref().map_or_else(|| gpu(self.x), |guard| Ok(guard.buffer()))
    }

    /// The input in f16, where it is not so already.
    fn halves<'s>(&self, scratch: &'s Scratch) -> Result<Option<ScratchGuard<'s>>> {
        if wgsl("linear", self.x)? == "f16" {
            return Ok(None);
        }
        let guard = scratch.lock(self.context, 2 * self.x.len() as u64)?;
        let count = self.x.len() / 4;
        let kernel = Specialisation::new("cast", include_str!("cast.wgsl"));
        let args = Args::default().numbers(&[count]);
        self.context.run(kernel, &[gpu(self.x)?, guard.buffer()], &args, spread(count.div_ceil(64)))?;
        Ok(Some(guard))
    }

    fn run(
        &self,
        kernel: &Specialisation,
        x: &GpuBuffer,
        groups: impl Fn(&Part) -> [usize; 2],
    ) -> Result<()> {
        let (rows, inputs, out_row) = (self.x.rows(), self.x.row_len(), self.out.row_len());
        for part in &self.matrix.parts {
            let bias = self.bias.unwrap_or(&part.scales);
            let buffers = [x, &part.weights, &part.scales, bias, gpu(self.out)?];
            let numbers = [rows, inputs, part.outputs, self.matrix.stride, out_row, part.first];
            let [columns, lines] = groups(part).map(|n| n as u32);
            let args = Args::default().numbers(&numbers);
            self.context.run(kernel.clone(), &buffers, &args, [columns, lines, 1])?;
        }
        Ok(())
    }
}

/// What becomes of the columns of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// Each is an output.
    Plain,
    /// Tiles of gates and of what they gate take turns, a pair to a subgroup.
    Gated,
}

/// How the kernel for matrix units is laid out, in tiles.
#[derive(Debug, Clone, Copy)]
struct TileShape {
    /// Of a work group.
    rows: usize,
    columns: usize,
    /// Subgroups of a work group.
    subgroups: usize,
    /// Of a subgroup.
    own_rows: usize,
    own_columns: usize,
    /// Inputs between two barriers.
    step: usize,
}

impl TileShape {
    /// The layout for a product of so many rows, inputs and outputs; it changes no bit. Measured in
    /// bench/records/2026-11-24-h200.csv.
    fn new(abilities: &Abilities, tile: usize, [rows, inputs, outputs]: [usize; 3], kind: Columns) -> Self {
        let mut shape = if rows > MANY {
            Self { rows: 8, columns: 8, subgroups: 8, own_rows: 4, own_columns: 2, step: 64 }
        } else {
            let own_rows = rows.div_ceil(tile).next_power_of_two();
            // Few outputs make few work groups, which need more on its way each.
            let (columns, subgroups, step) = match outputs {
                0..=1024 => (1, 8, 512),
                1025..16384 => (1, 4, 256),
                _ => (2, 4, 256),
            };
            Self { rows: own_rows, columns, subgroups, own_rows, own_columns: 1, step }
        };
        if kind == Columns::Gated {
            shape.columns = shape.columns.next_multiple_of(2);
            shape.own_columns = shape.own_columns.next_multiple_of(2);
        }
        let fits = |shape: &Self| {
            let tiles = (shape.rows + shape.columns) * tile * (shape.step + 8) * 2;
            tiles + shape.subgroups * tile * tile * 4 <= abilities.workgroup_memory as usize
        };
        while shape.step > STEP && !(fits(&shape) && inputs.is_multiple_of(shape.step)) {
            shape.step /= 2;
        }
        shape
    }

    fn kernel(&self, tile: usize, subgroup: usize, abilities: &Abilities) -> Specialisation {
        Specialisation::new("linear-tiles", TILED)
            .set("T", tile)
            .set("SUBGROUP", subgroup)
            .set("ROWS", self.rows * tile)
            .set("COLUMNS", self.columns * tile)
            .set("THREADS", self.subgroups * subgroup)
            .set("SUBGROUPS", self.subgroups)
            .set("ROW_PARTS", self.rows / self.own_rows)
            .set("COLUMN_PARTS", self.columns / self.own_columns)
            .set("R", self.own_rows)
            .set("C", self.own_columns)
            .set("STEP", self.step)
            .set("WIDE", u32::from(abilities.vector_tiles))
            .set("KW", if abilities.vector_tiles { 4 } else { 1 })
    }
}

const TILED: &str =
    concat!("enable f16;\nenable wgpu_cooperative_matrix;\n", include_str!("linear_tiles.wgsl"));

/// Rows `ids` of a matrix.
pub(super) fn embed(context: &Context, table: &Linear, ids: &Tensor, out: &Tensor) -> Result<()> {
    let matrix = matrix(table)?;
    for part in &matrix.parts {
        let place = (matrix.stride, part.first, part.outputs);
        context.gather((&part.weights, matrix.dtype), Some(&part.scales), place, gpu(ids)?, out)?;
    }
    Ok(())
}

/// Kernels as a GPU with these abilities launches them.
#[cfg(test)]
pub(super) fn samples(abilities: &Abilities) -> Vec<Specialisation> {
    let (tile, subgroup) = (abilities.matrix_tile.unwrap() as usize, abilities.subgroup.unwrap() as usize);
    let shape = |sizes| {
        let [plain, gated] = [Columns::Plain, Columns::Gated]
            .map(|kind| TileShape::new(abilities, tile, sizes, kind).kernel(tile, subgroup, abilities));
        [
            plain.set("OUT", "f32").set("BIAS", 1).set("ADD", 1).set("SILU", 0),
            gated.set("OUT", "f16").set("BIAS", 0).set("ADD", 0).set("SILU", 1),
        ]
    };
    let mut all = vec![Specialisation::new("cast", include_str!("cast.wgsl"))];
    for rows in [1, 20, 60, 500] {
        for (inputs, outputs) in [(1024, 4096), (1056, 1024), (1024, 151_936)] {
            all.extend(shape([rows, inputs, outputs]));
        }
    }
    for (weight, rows) in [("f32", 16), ("f16", 64)] {
        let kernel = Specialisation::new("linear-fma", include_str!("linear_fma.wgsl")).set("ROWS", rows);
        let kernel = kernel.set("IN", "f32").set("OUT", "f32").set("WEIGHT", weight).set("BIAS", 1);
        let f16 = u32::from(weight == "f16");
        all.push(kernel.set("F16", f16).set("ADD", f16).set("CHAIN_FROM_OUT", 1 - f16));
    }
    all
}

//! Products with matrices.

use std::sync::Arc;

use super::context::{Abilities, Context};
use super::matrix::{Matrix, Part, STEP};
use super::memory::{GpuBuffer, Scratch, ScratchGuard, gpu};
use super::pipeline::Specialisation;
use super::rows::{Args, f32_only, spread, wgsl};
use crate::{DType, Linear, NormedRows, Result, Tensor, checks};

/// What a product is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Onto {
    Zero,
    Out,
}

/// What a product is of.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// Rows as they are.
    Rows(&'a Tensor),
    /// Norms of rows, which every work group makes for itself.
    Normed(&'a NormedRows<'a>),
}

impl<'a> Input<'a> {
    fn rows(self) -> &'a Tensor {
        match self {
            Self::Rows(x) => x,
            Self::Normed(rows) => rows.x,
        }
    }

    fn is_normed(self) -> bool {
        matches!(self, Self::Normed(_))
    }
}

/// Rows up to which a work group has all of them.
const MANY: usize = 64;

/// Rows that work groups norm for themselves at most, and the elements of these, which each has in its memory: 16 rows
/// are faster with a launch of the norm (bench/records/2026-11-25-h200.csv). A matrix of more outputs is so many work
/// groups that this launch is less work, which has not been measured.
const NORMED_ROWS: usize = 8;
const NORMED: usize = 8192;
const NORMED_OUTPUTS: usize = 32 << 10;

/// What inputs are rounded to.
pub(super) fn input(abilities: &Abilities, weights: DType, in_features: usize) -> DType {
    match weights {
        DType::F16 | DType::Bf16 if abilities.matrix_tile.is_some() && in_features.is_multiple_of(STEP) => {
            DType::F16
        }
        _ => DType::F32,
    }
}

/// Whether a product makes the norms of its rows itself; they then have the bits of those in `normed`.
pub(super) fn norms(abilities: &Abilities, weight: &Linear, rows: &NormedRows<'_>, normed: &Tensor) -> bool {
    let input = input(abilities, weight.dtype, rows.x.row_len());
    let few = rows.x.rows() <= NORMED_ROWS && rows.x.len() <= NORMED && weight.out_features <= NORMED_OUTPUTS;
    // Sums take 32 threads, of four subgroups at least.
    let threads = input == DType::F32 || abilities.subgroup.is_some_and(|subgroup| subgroup >= 8);
    few && threads && (rows.x.dtype(), normed.dtype()) == (DType::F32, input)
}

/// `out = x W^T + bias`, or `out +=` it.
///
/// Matrix units take f16: `x` is rounded to it, to the nearest.
pub(super) fn product(
    context: &Arc<Context>,
    scratch: &Scratch,
    weight: &Linear,
    input: Input<'_>,
    (out, onto): (&Tensor, Onto),
) -> Result<()> {
    let x = input.rows();
    checks::linear(weight, x, out)?;
    if x.rows() == 0 {
        return Ok(());
    }
    let matrix = Matrix::of(weight)?;
    let bias = weight.bias.as_ref().map(gpu).transpose()?;
    let call = Product { context, matrix, bias, input, out, onto };
    match (context.abilities.matrix_tile, context.abilities.subgroup) {
        (Some(tile), Some(subgroup))
            if self::input(&context.abilities, weight.dtype, x.row_len()) == DType::F16 =>
        {
            call.on_matrix_units(scratch, tile as usize, subgroup as usize)
        }
        _ => call.by_multiply_adds(),
    }
}

/// `out = silu(gate) * up` of the halves of `x W^T`, in one launch; says whether it can, which no number of rows changes.
pub(super) fn gated(
    context: &Arc<Context>,
    scratch: &Scratch,
    weight: &Linear,
    input: Input<'_>,
    out: &Tensor,
) -> Result<bool> {
    let matrix = Matrix::of(weight)?;
    let (Some(tile), Some(subgroup)) = (context.abilities.matrix_tile, context.abilities.subgroup) else {
        return Ok(false);
    };
    let rounded = self::input(&context.abilities, weight.dtype, weight.in_features) == DType::F16;
    // What a tile has is gates, or what they gate.
    let whole = matrix.order.is_none() || (matrix.outputs() / 2).is_multiple_of(tile as usize);
    if !rounded || !whole || matrix.parts.len() != 1 || weight.bias.is_some() || subgroup > tile * tile {
        return Ok(false);
    }
    if input.rows().rows() > 0 {
        let call = Product { context, matrix, bias: None, input, out, onto: Onto::Zero };
        call.gated_on_matrix_units(scratch, tile as usize, subgroup as usize)?;
    }
    Ok(true)
}

/// One product with all parts of a matrix.
struct Product<'a> {
    context: &'a Arc<Context>,
    matrix: &'a Matrix,
    bias: Option<&'a GpuBuffer>,
    input: Input<'a>,
    out: &'a Tensor,
    onto: Onto,
}

impl Product<'_> {
    fn by_multiply_adds(&self) -> Result<()> {
        let x = self.input.rows();
        let (from, to) = (wgsl("linear", x)?, wgsl("linear", self.out)?);
        let tile_rows = if x.rows() <= 16 { 16 } else { 64 };
        let chained = self.onto == Onto::Out && self.matrix.dtype == "f32";
        let kernel = Specialisation::new("linear-fma", FMA)
            .set("ROWS", tile_rows)
            .set("IN", from)
            .set("WEIGHT", self.matrix.dtype)
            .set("OUT", to)
            .set("F16", u32::from([from, to, self.matrix.dtype].contains(&"f16")))
            .set("BIAS", u32::from(self.bias.is_some()))
            .set("CHAIN_FROM_OUT", u32::from(chained))
            .set("ADD", u32::from(self.onto == Onto::Out && !chained))
            .set("NORM", u32::from(self.input.is_normed()))
            .set("NORMED_ROWS", NORMED_ROWS);
        let groups = |part: &Part| [part.outputs.div_ceil(64), x.rows().div_ceil(tile_rows)];
        self.run(&kernel, gpu(x)?, groups)
    }

    fn on_matrix_units(&self, scratch: &Scratch, tile: usize, subgroup: usize) -> Result<()> {
        let halves = self.halves(scratch)?;
        let x = self.rounded(&halves)?;
        let shape = self.shape(tile, Columns::Plain);
        let kernel = shape.kernel(tile, subgroup, &self.context.abilities);
        let kernel = storing(kernel, wgsl("linear", self.out)?, self.width())
            .set("BIAS", u32::from(self.bias.is_some()))
            .set("ADD", u32::from(self.onto == Onto::Out))
            .set("SILU", 0);
        let rows = self.input.rows().rows().div_ceil(shape.rows * tile);
        self.run(&kernel, x, |part| [rows, part.outputs.div_ceil(shape.columns * tile)])
    }

    fn gated_on_matrix_units(&self, scratch: &Scratch, tile: usize, subgroup: usize) -> Result<()> {
        let (rows, inputs) = (self.input.rows().rows(), self.input.rows().row_len());
        let halves = self.halves(scratch)?;
        let x = self.rounded(&halves)?;
        let outputs = self.matrix.outputs() / 2;
        let shape = self.shape(tile, Columns::Gated);
        let kernel = shape.kernel(tile, subgroup, &self.context.abilities);
        let kernel = storing(kernel, wgsl("linear_silu_mul", self.out)?, self.width())
            .set("BIAS", 0)
            .set("ADD", 0)
            .set("SILU", 1);
        let part = &self.matrix.parts[0];
        let buffers = [x, &part.weights, &part.scales, &part.scales, gpu(self.out)?];
        let numbers = [rows, inputs, outputs, self.matrix.stride, self.out.row_len(), 0];
        let lines = outputs.div_ceil(shape.columns / 2 * tile);
        self.launch(&kernel, &buffers, &numbers, [rows.div_ceil(shape.rows * tile), lines])
    }

    fn shape(&self, tile: usize, columns: Columns) -> TileShape {
        let x = self.input.rows();
        let sizes = [x.rows(), x.row_len(), self.matrix.outputs()];
        let order = if self.matrix.order.is_some() { Order::OfThreads } else { Order::Rows };
        TileShape::new(&self.context.abilities, (tile, order), sizes, (columns, self.input.is_normed()))
    }

    /// Results that a thread stores at once.
    fn width(&self) -> usize {
        let even = self.matrix.outputs().is_multiple_of(2) && self.out.row_len().is_multiple_of(2);
        let elements = self.context.abilities.elements.filter(|_| self.matrix.order.is_some() && even);
        elements.map_or(1, |elements| elements.width())
    }

    fn rounded<'b>(&'b self, halves: &'b Option<ScratchGuard<'_>>) -> Result<&'b GpuBuffer> {
        halves.as_ref().map_or_else(|| gpu(self.input.rows()), |guard| Ok(guard.buffer()))
    }

    /// The input in f16, where it is not so already and the kernel does not round it.
    fn halves<'s>(&self, scratch: &'s Scratch) -> Result<Option<ScratchGuard<'s>>> {
        let x = self.input.rows();
        if wgsl("linear", x)? == "f16" || self.input.is_normed() {
            return Ok(None);
        }
        let guard = scratch.lock(self.context, 2 * x.len() as u64)?;
        let count = x.len() / 4;
        let kernel = Specialisation::new("cast", include_str!("cast.wgsl"));
        let args = Args::default().numbers(&[count]);
        self.context.run(kernel, &[gpu(x)?, guard.buffer()], &args, spread(count.div_ceil(64)))?;
        Ok(Some(guard))
    }

    fn run(
        &self,
        kernel: &Specialisation,
        x: &GpuBuffer,
        groups: impl Fn(&Part) -> [usize; 2],
    ) -> Result<()> {
        let (rows, inputs) = (self.input.rows().rows(), self.input.rows().row_len());
        for part in &self.matrix.parts {
            let bias = self.bias.unwrap_or(&part.scales);
            let buffers = [x, &part.weights, &part.scales, bias, gpu(self.out)?];
            let numbers = [rows, inputs, part.outputs, self.matrix.stride, self.out.row_len(), part.first];
            self.launch(kernel, &buffers, &numbers, groups(part))?;
        }
        Ok(())
    }

    fn launch(
        &self,
        kernel: &Specialisation,
        buffers: &[&GpuBuffer; 5],
        numbers: &[usize; 6],
        groups: [usize; 2],
    ) -> Result<()> {
        let args = Args::default().numbers(numbers);
        let groups = [groups[0] as u32, groups[1] as u32, 1];
        match self.input {
            Input::Rows(_) => self.context.run(kernel.clone(), buffers, &args, groups),
            Input::Normed(rows) => {
                let buffers = [&buffers[..], &[f32_only("norm_linear", rows.weight)?]].concat();
                self.context.run(kernel.clone(), &buffers, &args.float(rows.eps), groups)
            }
        }
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

/// How weights are ordered; see [`Matrix`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Rows,
    OfThreads,
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
    /// Rows and elements that are normed and kept before the first of these steps, at most.
    normed: Option<[usize; 2]>,
    order: Order,
    /// Subgroups take weights from memory, not from workgroup memory.
    direct: bool,
}

impl TileShape {
    /// The layout for a product of so many rows, inputs and outputs; it changes no bit. Measured in
    /// bench/records/2026-11-24-h200.csv, and with weights in the order of threads in 2026-11-28-h200.csv.
    fn new(
        abilities: &Abilities,
        (tile, order): (usize, Order),
        [rows, inputs, outputs]: [usize; 3],
        (kind, normed): (Columns, bool),
    ) -> Self {
        let normed = normed.then(|| [rows, rows * inputs].map(usize::next_power_of_two));
        let direct = rows > MANY && order == Order::OfThreads;
        let mut shape = if rows > MANY {
            // Subgroups that have all rows take each of their weights once: many rows, where there are such work groups enough.
            let groups = rows.div_ceil(8 * tile) * outputs.div_ceil(16 * tile);
            let (rows, columns, subgroups, own_rows) = match direct {
                true if groups >= abilities.busy / 2 => (8, 16, 8, 8),
                true => (4, 8, 4, 4),
                false => (8, 8, 8, 4),
            };
            Self { rows, columns, subgroups, own_rows, own_columns: 2, step: 64, normed, order, direct }
        } else {
            let own_rows = rows.div_ceil(tile).next_power_of_two();
            // Few outputs make few work groups, which need more on its way each.
            let (columns, subgroups, step) = match outputs {
                0..=1024 => (1, 8, 512),
                1025..16384 => (1, 4, 256),
                _ => (2, 4, 256),
            };
            let rows = own_rows;
            Self { rows, columns, subgroups, own_rows, own_columns: 1, step, normed, order, direct }
        };
        if kind == Columns::Gated {
            shape.columns = shape.columns.next_multiple_of(2);
            shape.own_columns = shape.own_columns.next_multiple_of(2);
        }
        let fits = |shape: &Self| {
            let sums = normed.map_or(0, |[rows, _]| rows * 4 * (33 + 1));
            let columns = shape.columns * tile;
            // Of weights, and of what results need.
            let (weights, results) = match (order, direct) {
                (Order::Rows, _) => (columns * (shape.step + 8), shape.subgroups * tile * tile),
                (Order::OfThreads, true) => (0, tile * tile + 2 * columns),
                (Order::OfThreads, false) => (columns * shape.step, tile * tile + 2 * columns),
            };
            let bytes = (shape.inputs(tile) + weights) * 2 + (sums + results) * 4;
            bytes <= abilities.workgroup_memory as usize
        };
        while shape.step > STEP && !(fits(&shape) && inputs.is_multiple_of(shape.step)) {
            shape.step /= 2;
        }
        shape
    }

    /// Inputs in workgroup memory, no more than there are: work groups that share a multiprocessor share its memory. A
    /// tile of normed ones has memory to its end, where rows end before it.
    fn inputs(&self, tile: usize) -> usize {
        self.normed.map_or(self.rows * tile * (self.step + 8), |[_, elements]| elements + tile * tile)
    }

    fn kernel(&self, tile: usize, subgroup: usize, abilities: &Abilities) -> Specialisation {
        let (name, source) = match self.order {
            Order::Rows => ("linear-rows", ROWS),
            Order::OfThreads => ("linear-elements", ELEMENTS),
        };
        Specialisation::new(name, source)
            .set("DIRECT", u32::from(self.direct))
            // Tiles whose elements a thread has registers for beside their own.
            .set("BATCH", self.own_rows.min((8 / self.own_columns).max(1)))
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
            .set("X", self.inputs(tile))
            .set("NORM", u32::from(self.normed.is_some()))
            .set("NORMED_ROWS", self.normed.map_or(0, |[rows, _]| rows))
            .set("WIDE", u32::from(abilities.vector_tiles))
            .set("KW", if abilities.vector_tiles { 4 } else { 1 })
    }
}

/// A kernel for matrix units that stores so many results of a thread at once.
fn storing(kernel: Specialisation, out: &'static str, width: usize) -> Specialisation {
    let (outs, values) = match (width, out) {
        (1, _) => (out, "f32"),
        (_, "f16") => ("vec2<f16>", "vec2<f32>"),
        _ => ("vec2<f32>", "vec2<f32>"),
    };
    kernel.set("OUT", out).set("OUTS", outs).set("VALUES", values).set("WIDTH", width)
}

/// A kernel for matrix units with one way of weights and results.
macro_rules! tiled {
    ($way:literal) => {
        concat!(
            "enable f16;\nenable wgpu_cooperative_matrix;\n",
            include_str!("linear_norm.wgsl"),
            include_str!($way),
            include_str!("linear_tiles.wgsl")
        )
    };
}
const ROWS: &str = tiled!("linear_rows.wgsl");
const ELEMENTS: &str = tiled!("linear_elements.wgsl");

const FMA: &str = concat!(include_str!("linear_fma.wgsl"), include_str!("linear_norm.wgsl"));

/// Rows `ids` of a matrix.
pub(super) fn embed(context: &Context, table: &Linear, ids: &Tensor, out: &Tensor) -> Result<()> {
    let matrix = Matrix::of(table)?;
    for part in &matrix.parts {
        let place = (matrix.stride, part.first, part.outputs);
        let of_rows = (Some(&part.scales), matrix.order.as_ref());
        context.gather((&part.weights, matrix.dtype), of_rows, place, gpu(ids)?, out)?;
    }
    Ok(())
}

/// Kernels as a GPU with these abilities launches them.
#[cfg(test)]
pub(super) fn samples(abilities: &Abilities) -> Vec<Specialisation> {
    let (tile, subgroup) = (abilities.matrix_tile.unwrap() as usize, abilities.subgroup.unwrap() as usize);
    let (order, width) = abilities.elements.map_or((Order::Rows, 1), |_| (Order::OfThreads, 2));
    let shape = |sizes, normed| {
        let [plain, gated] = [Columns::Plain, Columns::Gated].map(|kind| {
            let shape = TileShape::new(abilities, (tile, order), sizes, (kind, normed));
            shape.kernel(tile, subgroup, abilities)
        });
        [
            storing(plain, "f32", width).set("BIAS", 1).set("ADD", 1).set("SILU", 0),
            storing(gated, "f16", width).set("BIAS", 0).set("ADD", 0).set("SILU", 1),
        ]
    };
    let mut all = vec![Specialisation::new("cast", include_str!("cast.wgsl"))];
    for (inputs, outputs) in [(1024, 4096), (1056, 1024), (1024, 151_936)] {
        for rows in [1, 20, 60, 500, 2000] {
            all.extend(shape([rows, inputs, outputs], false));
        }
        all.extend(shape([NORMED / inputs, inputs, outputs], true));
    }
    for (weight, rows, normed) in [("f32", 16, 0), ("f16", 64, 0), ("f32", 16, 1), ("f16", 16, 1)] {
        let kernel = Specialisation::new("linear-fma", FMA).set("ROWS", rows);
        let kernel = kernel.set("IN", "f32").set("OUT", "f32").set("WEIGHT", weight).set("BIAS", 1);
        let kernel = kernel.set("NORM", normed).set("NORMED_ROWS", NORMED_ROWS);
        let f16 = u32::from(weight == "f16");
        all.push(kernel.set("F16", f16).set("ADD", f16).set("CHAIN_FROM_OUT", 1 - f16));
    }
    all
}

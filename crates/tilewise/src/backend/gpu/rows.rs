//! Launches of the operations on rows: norms, rotations, activation, gathering.

use std::sync::Arc;

use super::context::{Context, Launch};
use super::memory::{GpuBuffer, gpu};
use super::pipeline::{Pipeline, Specialisation};
use crate::{DType, Error, HeadSpan, Result, Tensor};

/// Work groups of a launch, over two axes: one axis holds 65535.
pub(super) fn spread(groups: usize) -> [u32; 3] {
    const ROW: usize = 32768;
    if groups <= ROW { [groups as u32, 1, 1] } else { [ROW as u32, groups.div_ceil(ROW) as u32, 1] }
}

/// The name of an element type in WGSL, for the types that activations have.
pub(super) fn wgsl(op: &'static str, tensor: &Tensor) -> Result<&'static str> {
    match tensor.dtype() {
        DType::F32 => Ok("f32"),
        DType::F16 => Ok("f16"),
        _ => Err(Error::shape(op, format!("needs f32, got {tensor:?}"))),
    }
}

/// Checks that a tensor is f32.
pub(super) fn f32_only<'a>(op: &'static str, tensor: &'a Tensor) -> Result<&'a GpuBuffer> {
    if tensor.dtype() != DType::F32 {
        return Err(Error::shape(op, format!("needs f32, got {tensor:?}")));
    }
    gpu(tensor)
}

/// Arguments of a kernel, four bytes each.
#[derive(Default)]
pub(super) struct Args(Vec<u32>);

impl Args {
    pub(super) fn numbers(mut self, numbers: &[usize]) -> Self {
        self.0.extend(numbers.iter().map(|&n| n as u32));
        self
    }

    pub(super) fn float(mut self, x: f32) -> Self {
        self.0.push(x.to_bits());
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Context {
    pub(super) fn kernel(&self, kernel: Specialisation) -> Arc<Pipeline> {
        self.pipelines.get(&self.device, kernel)
    }

    pub(super) fn run(
        &self,
        kernel: Specialisation,
        buffers: &[&GpuBuffer],
        args: &Args,
        groups: [u32; 3],
    ) -> Result<()> {
        let kernel = self.kernel(kernel);
        self.launch(&Launch { kernel: &kernel, buffers, immediates: args.bytes(), groups })
    }

    pub(super) fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &Tensor) -> Result<()> {
        let len = x.row_len();
        let buffers = [f32_only("rms_norm", x)?, f32_only("rms_norm", weight)?, gpu(out)?];
        let to = wgsl("rms_norm", out)?;
        if len.is_multiple_of(4) {
            let args = Args::default().numbers(&[x.rows(), len]).float(eps);
            let groups = spread(x.rows().div_ceil(NORM_ROWS));
            return self.run(norm_rows(to, len <= 1024), &buffers, &args, groups);
        }
        let args = Args::default().numbers(&[x.rows(), 1, len, len, 0, len, 0]).float(eps);
        self.run(norm(to), &buffers, &args, spread(x.rows()))
    }

    pub(super) fn rms_norm_heads(&self, x: &Tensor, span: HeadSpan, weight: &Tensor, eps: f32) -> Result<()> {
        let buffers = [f32_only("rms_norm_heads", x)?, f32_only("rms_norm_heads", weight)?];
        let count = x.rows() * span.num_heads;
        let numbers = [count, span.num_heads, span.head_dim, x.row_len(), span.offset, 0, 0];
        let args = Args::default().numbers(&numbers).float(eps);
        self.run(norm_in_place(), &buffers, &args, spread(count))
    }

    pub(super) fn rope(&self, x: &Tensor, span: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()> {
        let buffers = [f32_only("rope", x)?, f32_only("rope", table)?, gpu(positions)?];
        let half = table.row_len() / 2;
        let pairs = x.rows() * span.num_heads * half;
        let numbers = [pairs, span.num_heads, span.head_dim, half, x.row_len(), span.offset];
        self.run(rope(), &buffers, &Args::default().numbers(&numbers), spread(pairs.div_ceil(64)))
    }

    pub(super) fn silu_mul(&self, gate_up: &Tensor, out: &Tensor) -> Result<()> {
        let (from, to) = (wgsl("silu_mul", gate_up)?, wgsl("silu_mul", out)?);
        let args = Args::default().numbers(&[out.len(), out.row_len()]);
        self.run(silu(from, to), &[gpu(gate_up)?, gpu(out)?], &args, spread(out.len().div_ceil(256)))
    }

    /// `out[i] = table[rows[i] - first]` where the table has that row, times `scales`; `order` as in
    /// [`super::matrix::Matrix`].
    pub(super) fn gather(
        &self,
        (table, dtype): (&GpuBuffer, &'static str),
        (scales, order): (Option<&GpuBuffer>, Option<&GpuBuffer>),
        (stride, first, table_rows): (usize, usize, usize),
        rows: &GpuBuffer,
        out: &Tensor,
    ) -> Result<()> {
        let args = Args::default().numbers(&[out.len(), out.row_len(), stride, first, table_rows]);
        let mut buffers = vec![table, rows, gpu(out)?];
        buffers.extend(scales);
        buffers.extend(order);
        let tile = order.map(|_| self.abilities.matrix_tile.unwrap_or(1));
        let types = [dtype, wgsl("gather", out)?];
        self.run(gather(types, scales.is_some(), tile), &buffers, &args, spread(out.len().div_ceil(256)))
    }
}

/// Rows of a work group that norms rows of whole vectors.
const NORM_ROWS: usize = 8;

/// Norms of rows of whole vectors, written as `to`; `kept` if a row is no longer than what its threads keep.
fn norm_rows(to: &'static str, kept: bool) -> Specialisation {
    const SOURCE: &str = concat!(
        "#if F16\nenable f16;\n#end\n",
        include_str!("linear_norm.wgsl"),
        include_str!("norm_rows.wgsl")
    );
    let kernel = Specialisation::new("norm-rows", SOURCE).set("NORM", 1).set("ROWS", NORM_ROWS);
    kernel.set("KEPT", u32::from(kept)).set("OUT", to).set("F16", u32::from(to == "f16"))
}

/// Norms of other rows, written as `to`.
fn norm(to: &'static str) -> Specialisation {
    norm_by(256).set("IN_PLACE", 0).set("OUT", to).set("F16", u32::from(to == "f16"))
}

/// Norms of heads within rows.
fn norm_in_place() -> Specialisation {
    norm_by(64).set("IN_PLACE", 1).set("OUT", "f32").set("F16", 0)
}

fn norm_by(threads: u32) -> Specialisation {
    Specialisation::new("rms_norm", include_str!("norm.wgsl"))
        .set("THREADS", threads)
        .set("LOG", threads.ilog2())
}

fn rope() -> Specialisation {
    Specialisation::new("rope", include_str!("rope.wgsl"))
}

fn silu(from: &'static str, to: &'static str) -> Specialisation {
    Specialisation::new("silu", include_str!("silu.wgsl"))
        .set("IN", from)
        .set("OUT", to)
        .set("F16", u32::from(from == "f16" || to == "f16"))
}

fn gather([from, to]: [&'static str; 2], scaled: bool, tile: Option<u32>) -> Specialisation {
    Specialisation::new("gather", include_str!("gather.wgsl"))
        .set("IN", from)
        .set("OUT", to)
        .set("F16", u32::from([from, to].contains(&"f16")))
        .set("SCALED", u32::from(scaled))
        .set("T", tile.unwrap_or(0))
}

/// Kernels of this module as they are launched, of each kind at least one.
#[cfg(test)]
pub(super) fn samples() -> Vec<Specialisation> {
    let types = ["f32", "f16"];
    let mut all = vec![norm_in_place(), rope()];
    all.extend(types.map(norm));
    all.extend([false, true].iter().flat_map(|&kept| types.map(|to| norm_rows(to, kept))));
    all.extend(types.iter().flat_map(|from| types.map(|to| silu(from, to))));
    all.extend(types.iter().flat_map(|from| [false, true].map(|scaled| gather([from, "f32"], scaled, None))));
    all.push(gather(["f16"; 2], false, None));
    all
}

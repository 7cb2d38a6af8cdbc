//! `tilewise tune`: measures a device's attention kernels and writes down which to use when.

use std::io::Write;

use tilewise::{AttentionParams, DType, Mask};
use tilewise_engine::policy::{Measurement, PolicyFile};

use super::bench_attention::{REFERENCE, Timed, time};
use super::shape::Shape;
use crate::args::{Layout, TuneArgs};
use crate::error::CliError;
use crate::model;

/// Heads of keys and values, as many as models of today have.
const KV_HEADS: usize = 8;

/// Tokens per page, as the engine has them.
const PAGE_SIZE: usize = 32;

pub(crate) fn run(args: &TuneArgs) -> Result<(), CliError> {
    if !(args.budget.is_finite() && args.budget >= 0.0) {
        return Err(CliError::Usage(format!("--budget must be at least 0 seconds, got {}", args.budget)));
    }
    model::check_writable(&args.out)?;
    let device = model::open_device(&args.device)?;
    let shapes = shapes(args)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} shapes on {}", shapes.len(), device.caps().description)?;
    let mut measured = Vec::new();
    for shape in &shapes {
        let kernels = device.policy().kernels.iter();
        let kernels = kernels.filter(|k| k.name != REFERENCE && (k.refuses)(&shape.params).is_none());
        let kernels: Vec<&'static str> = kernels.map(|kernel| kernel.name).collect();
        let timed = time(&*device, shape, &kernels, args.budget)?;
        let times: Vec<String> = timed.iter().map(in_words).collect();
        writeln!(out, "{}: {}", shape.title(), times.join(", "))?;
        out.flush()?;
        measured.extend(timed.iter().map(|timed| measurement(shape, timed)));
    }
    let policy = PolicyFile::new(&*device, measured);
    for row in &policy.thresholds {
        let (dim, dtype, rows) = (row.head_dim, &row.kv_dtype, row.rows);
        writeln!(out, "heads of {dim}, {dtype}: {} up to {rows} rows", tilewise_engine::policy::FEW)?;
    }
    policy.write(&args.out)?;
    writeln!(out, "wrote {}", args.out.display())?;
    Ok(())
}

/// Every combination: decoding, and short prompts at the end of long ones.
fn shapes(args: &TuneArgs) -> Result<Vec<Shape>, CliError> {
    let mut shapes = Vec::new();
    for &head_dim in &args.head_dim {
        for &kv_dtype in &args.kv_dtype {
            for &kv_len in &args.kv_len {
                for &rows in &args.rows {
                    let params = AttentionParams::new(KV_HEADS, KV_HEADS, head_dim)
                        .dtypes(DType::F32, kv_dtype)
                        .mask(Mask::Causal);
                    params.validate()?;
                    let (layout, page_size, window) = (Layout::Paged, PAGE_SIZE, None);
                    let (batch, q_len) = (args.batch, rows);
                    let shared_prefix = 0;
                    shapes.push(Shape {
                        batch,
                        q_len,
                        kv_len,
                        window,
                        layout,
                        page_size,
                        shared_prefix,
                        params,
                    });
                }
            }
        }
    }
    shapes.iter().try_for_each(Shape::check)?;
    Ok(shapes)
}

fn in_words(timed: &Timed) -> String {
    format!("{} {:.3} ms", timed.kernel, super::median(&timed.seconds) * 1e3)
}

fn measurement(shape: &Shape, timed: &Timed) -> Measurement {
    Measurement {
        head_dim: shape.params.head_dim,
        kv_dtype: shape.params.kv_dtype.name().to_owned(),
        rows: shape.q_len * shape.params.group_size(),
        kv_len: shape.kv_len,
        kernel: timed.kernel.to_owned(),
        median_s: super::median(&timed.seconds),
        runs: timed.seconds.len(),
    }
}

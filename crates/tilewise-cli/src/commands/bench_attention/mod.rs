//! `tilewise bench attention`: every kernel that supports a shape, checked, then timed.

mod inputs;
mod measure;
mod oracle;
mod report;

use std::io::Write;

use serde::Serialize;
use tilewise::Ceilings;

use super::shape::{self, Shape, ShapeRecord};
use crate::args::{BenchAttentionArgs, Format};
use crate::error::CliError;
use crate::model;
use inputs::Inputs;

/// One kernel on one shape.
#[derive(Debug, Clone, Serialize)]
struct Row {
    kernel: &'static str,
    device: String,
    threads: usize,
    median_s: f64,
    min_s: f64,
    runs: usize,
    gflops: f64,
    kv_gb_s: f64,
    /// The machine's own, measured after the kernels.
    peak_gflops: f64,
    read_gb_s: f64,
    max_abs_err: f64,
    /// Whether dispatch chooses this kernel.
    selected: bool,
    #[serde(flatten)]
    shape: ShapeRecord,
    #[serde(skip)]
    title: String,
}

/// The scalar kernel is the specification, not a contender: above this it takes minutes, so it must be asked
/// for.
pub(super) const REFERENCE: &str = "reference";
const REFERENCE_FLOPS: f64 = 2e9;

pub(crate) fn run(args: &BenchAttentionArgs) -> Result<(), CliError> {
    let device = super::open_device(&args.device, &args.policy)?;
    if !(args.budget.is_finite() && args.budget >= 0.0) {
        return Err(CliError::Usage(format!("--budget must be at least 0 seconds, got {}", args.budget)));
    }
    args.html.as_deref().map_or(Ok(()), model::check_writable)?;
    let mut shapes = shape::sweep(&args.shape)?;
    for shape in &mut shapes {
        shape.shared_prefix = args.shared_prefix;
        shape.check()?;
        device.policy().choose(&shape.params, &shape.regime(), args.kernel.as_deref())?;
    }
    let mut out = std::io::stdout().lock();
    let mut rows = Vec::new();
    for shape in &shapes {
        let measured = bench(&*device, shape, args)?;
        for row in &measured {
            if args.format == Format::Json {
                writeln!(out, "{}", super::json_line(row)?)?;
            }
        }
        if args.format == Format::Text {
            print(shape, &measured, &mut out)?;
        }
        rows.extend(measured);
    }
    if let Some(path) = &args.html {
        let html = report::html(&device.caps().description, &rows);
        std::fs::write(path, html).map_err(|error| model::unwritable(path, &error))?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// All kernels on one shape.
fn bench(
    device: &dyn tilewise::Device,
    shape: &Shape,
    args: &BenchAttentionArgs,
) -> Result<Vec<Row>, CliError> {
    let kernels = kernels(device, shape, args);
    let selected = device.policy().choose(&shape.params, &shape.regime(), None).ok();
    let selected = selected.map(|choice| device.policy().kernels[choice.kernel].name);
    let timed = time(device, shape, &kernels, args.budget)?;
    let ceilings = device.ceilings()?;
    Ok(timed.iter().map(|timed| row(timed, shape, selected, (device, ceilings), args)).collect())
}

/// A kernel's answer and times on one shape.
pub(super) struct Timed {
    pub(super) kernel: &'static str,
    pub(super) max_abs_err: f64,
    pub(super) seconds: Vec<f64>,
}

/// Checks the answers of kernels on one shape, then times them in turns.
pub(super) fn time(
    device: &dyn tilewise::Device,
    shape: &Shape,
    kernels: &[&'static str],
    budget: f64,
) -> Result<Vec<Timed>, CliError> {
    let inputs = Inputs::new(device, shape)?;
    let expected = oracle::expect(shape, &inputs.host);
    let mut runs = Vec::new();
    for kernel in kernels {
        let mut run = measure::Run::new(device, &inputs, kernel)?;
        run.once()?;
        run.max_abs_err = oracle::max_abs_err(&expected, &run.output()?);
        let allowed = oracle::tolerance(device.caps(), &shape.params);
        // Not `>`: an error that is not a number is refused too.
        if !run.max_abs_err.le(&allowed) {
            let why = format!(
                "{kernel} is off by {:.2e} where {allowed:.0e} is allowed ({}); it is not timed",
                run.max_abs_err,
                shape.title()
            );
            return Err(CliError::Failed(why));
        }
        runs.push(run);
    }
    drop(expected);
    measure::alternate(&mut runs, budget)?;
    let timed = |run: measure::Run<'_>| Timed {
        kernel: run.kernel,
        max_abs_err: run.max_abs_err,
        seconds: run.seconds,
    };
    Ok(runs.into_iter().map(timed).collect())
}

/// The kernels to measure: those that support the shape, or the one asked for.
fn kernels(device: &dyn tilewise::Device, shape: &Shape, args: &BenchAttentionArgs) -> Vec<&'static str> {
    let supported = device.policy().kernels.iter().filter(|kernel| (kernel.refuses)(&shape.params).is_none());
    let names = supported.map(|kernel| kernel.name);
    match &args.kernel {
        Some(asked) => names.filter(|name| name == asked).collect(),
        None => names.filter(|&name| name != REFERENCE || shape.flops() <= REFERENCE_FLOPS).collect(),
    }
}

fn row(
    run: &Timed,
    shape: &Shape,
    selected: Option<&str>,
    (device, ceilings): (&dyn tilewise::Device, Ceilings),
    args: &BenchAttentionArgs,
) -> Row {
    let median_s = super::median(&run.seconds);
    Row {
        kernel: run.kernel,
        device: device.caps().name.clone(),
        threads: model::threads(&args.device),
        median_s,
        min_s: run.seconds.iter().copied().fold(f64::INFINITY, f64::min),
        runs: run.seconds.len(),
        gflops: shape.flops() / median_s / 1e9,
        kv_gb_s: shape.kv_bytes() / median_s / 1e9,
        peak_gflops: ceilings.flops / 1e9,
        read_gb_s: ceilings.read_bytes / 1e9,
        max_abs_err: run.max_abs_err,
        selected: selected == Some(run.kernel),
        shape: shape.record(),
        title: shape.title(),
    }
}

fn print(shape: &Shape, rows: &[Row], out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{}", shape.title())?;
    writeln!(
        out,
        "  {:<18} {:>12} {:>12} {:>5} {:>9} {:>8} {:>9} {:>8} {:>10}",
        "kernel", "median", "min", "runs", "GFLOP/s", "of peak", "KV GB/s", "of read", "max error"
    )?;
    for row in rows {
        let mark = if row.selected { "* " } else { "  " };
        writeln!(
            out,
            "{mark}{:<18} {:>9.3} ms {:>9.3} ms {:>5} {:>9.1} {:>6.0} % {:>9.2} {:>6.0} % {:>10.1e}",
            row.kernel,
            row.median_s * 1e3,
            row.min_s * 1e3,
            row.runs,
            row.gflops,
            100.0 * row.gflops / row.peak_gflops,
            row.kv_gb_s,
            100.0 * row.kv_gb_s / row.read_gb_s,
            row.max_abs_err
        )?;
    }
    if let Some(Row { peak_gflops, read_gb_s, .. }) = rows.first() {
        writeln!(
            out,
            "  (* is the one that dispatch chooses; this machine multiplies and adds {peak_gflops:.0} \
                 GFLOP/s and reads {read_gb_s:.1} GB/s)"
        )?;
    }
    Ok(())
}

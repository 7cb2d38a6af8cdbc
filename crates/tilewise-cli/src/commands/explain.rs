//! `tilewise explain`

use std::io::Write;

use serde::Serialize;
use tilewise::dispatch::Reason;

use super::shape::{self, ShapeRecord};
use crate::args::{ExplainArgs, Format};
use crate::error::CliError;

#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    shape: ShapeRecord,
    device: String,
    kernel: &'static str,
    /// Why, in words; `None` for a kernel that was asked for.
    rule: Option<String>,
    /// The record that the rule rests on, or the policy file.
    evidence: Option<String>,
    /// Kernels that cannot run the shape, and why not.
    refused: Vec<(&'static str, &'static str)>,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<(), CliError> {
    let device = super::open_device(&args.device, &args.policy)?;
    let policy = device.policy();
    let mut out = std::io::stdout().lock();
    for shape in shape::sweep(&args.shape)? {
        let choice = policy.choose(&shape.params, &shape.regime(), args.kernel.as_deref())?;
        let refused = policy.kernels.iter().filter_map(|k| Some((k.name, (k.refuses)(&shape.params)?)));
        let (rule, evidence) = why(&choice.reason);
        let explanation = Explanation {
            shape: shape.record(),
            device: device.caps().name.clone(),
            kernel: policy.kernels[choice.kernel].name,
            rule,
            evidence,
            refused: refused.collect(),
        };
        match args.format {
            Format::Json => writeln!(out, "{}", super::json_line(&explanation)?)?,
            Format::Text => print(&shape.title(), &explanation, &mut out)?,
        }
    }
    Ok(())
}

/// Why a kernel was taken and what that rests on, unless it was asked for.
fn why(reason: &Reason<'_>) -> (Option<String>, Option<String>) {
    match reason {
        Reason::Rule(rule) => (Some(rule.when.to_owned()), Some(rule.evidence.to_owned())),
        Reason::Measured(threshold, measured) => {
            let when = format!(
                "measured on this device: {} up to {} rows of {} {} in pages, then {}",
                threshold.few, threshold.rows, threshold.head_dim, threshold.kv_dtype, threshold.many
            );
            (Some(when), Some(measured.evidence.clone()))
        }
        _ => (None, None),
    }
}

fn print(title: &str, explanation: &Explanation, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{title}")?;
    writeln!(out, "  every sequence gets the kernel {} on {}", explanation.kernel, explanation.device)?;
    match (&explanation.rule, &explanation.evidence) {
        (Some(rule), Some(evidence)) => writeln!(out, "  rule: {rule}\n  record: {evidence}")?,
        _ => writeln!(out, "  because --kernel asks for it")?,
    }
    for (kernel, why) in &explanation.refused {
        writeln!(out, "  {kernel} cannot: it does not support {why}")?;
    }
    Ok(())
}

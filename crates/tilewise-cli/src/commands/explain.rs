//! `tilewise explain`

use std::io::Write;

use serde::Serialize;

use super::shape::{self, ShapeRecord};
use crate::args::{ExplainArgs, Format};
use crate::error::CliError;
use crate::model;

#[derive(Debug, Serialize)]
struct Explanation {
    #[serde(flatten)]
    shape: ShapeRecord,
    device: String,
    kernel: &'static str,
    /// Why, in words; `None` for a kernel that was asked for.
    rule: Option<&'static str>,
    /// The record that the rule rests on.
    evidence: Option<&'static str>,
    /// Kernels that cannot run the shape, and why not.
    refused: Vec<(&'static str, &'static str)>,
}

pub(crate) fn run(args: &ExplainArgs) -> Result<(), CliError> {
    let device = model::open_device(&args.device)?;
    let policy = device.policy();
    let mut out = std::io::stdout().lock();
    for shape in shape::sweep(&args.shape)? {
        let choice = policy.choose(&shape.params, &shape.regime(), args.kernel.as_deref())?;
        let refused = policy.kernels.iter().filter_map(|k| Some((k.name, (k.refuses)(&shape.params)?)));
        let explanation = Explanation {
            shape: shape.record(),
            device: device.caps().name.clone(),
            kernel: policy.kernels[choice.kernel].name,
            rule: choice.rule.map(|rule| rule.when),
            evidence: choice.rule.map(|rule| rule.evidence),
            refused: refused.collect(),
        };
        match args.format {
            Format::Json => writeln!(out, "{}", super::json_line(&explanation)?)?,
            Format::Text => print(&shape.title(), &explanation, &mut out)?,
        }
    }
    Ok(())
}

fn print(title: &str, explanation: &Explanation, out: &mut impl Write) -> std::io::Result<()> {
    writeln!(out, "{title}")?;
    writeln!(out, "  every sequence gets the kernel {} on {}", explanation.kernel, explanation.device)?;
    match (explanation.rule, explanation.evidence) {
        (Some(rule), Some(evidence)) => writeln!(out, "  rule: {rule}\n  record: {evidence}")?,
        _ => writeln!(out, "  because --kernel asks for it")?,
    }
    for (kernel, why) in &explanation.refused {
        writeln!(out, "  {kernel} cannot: it does not support {why}")?;
    }
    Ok(())
}

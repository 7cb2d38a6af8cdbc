//! `tilewise devices`

use std::io::Write;

use serde::Serialize;
use tilewise::DeviceSummary;

use crate::args::{DevicesArgs, Format};
use crate::error::CliError;

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    description: String,
    /// Whether it is a processor that plays a GPU.
    software: bool,
}

pub(crate) fn run(args: &DevicesArgs) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    for DeviceSummary { name, description, software } in tilewise::devices()? {
        match args.format {
            Format::Json => {
                writeln!(out, "{}", super::json_line(&Listed { name, description, software })?)?;
            }
            Format::Text => {
                let note = if software { "; software, slower than cpu" } else { "" };
                writeln!(out, "{name:<8}{description}{note}")?;
            }
        }
    }
    Ok(())
}

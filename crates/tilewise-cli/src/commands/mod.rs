//! One file per command.

pub(crate) mod bench_attention;
pub(crate) mod bench_one_batch;
pub(crate) mod bench_serving_offline;
pub(crate) mod chat;
mod completion;
pub(crate) mod devices;
pub(crate) mod docs;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod serve;
mod shape;
pub(crate) mod tune;

use std::sync::Arc;

use tilewise::Device;
use tilewise_engine::policy::PolicyFile;

use crate::args::{DeviceArgs, PolicyArgs};
use crate::error::CliError;

/// The device that the command line names, with the kernels that its policy file chooses.
fn open_device(device: &DeviceArgs, policy: &PolicyArgs) -> Result<Arc<dyn Device>, CliError> {
    let device = crate::model::open_device(device)?;
    if let Some(path) = &policy.policy {
        PolicyFile::apply(path, &*device)?;
    }
    Ok(device)
}

/// The middle value; the mean of both where there are two; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// A value as one line of JSON.
pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<String, CliError> {
    serde_json::to_string(value).map_err(|error| CliError::Failed(error.to_string()))
}

/// A well-mixed number for each input: prompts of benchmarks are random but the same in every run.
pub(crate) fn scatter(index: u64) -> u64 {
    let mut x = index.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) >> 8
}

//! One file per command.

pub(crate) mod bench_attention;
pub(crate) mod bench_one_batch;
pub(crate) mod devices;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod inspect;
mod shape;

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
pub(crate) fn json_line(value: &impl serde::Serialize) -> Result<String, crate::error::CliError> {
    serde_json::to_string(value).map_err(|error| crate::error::CliError::Failed(error.to_string()))
}

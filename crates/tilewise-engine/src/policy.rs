//! Policy files: what the owner of a machine has measured on its device, and which kernels follow from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tilewise::dispatch::{Measured, Threshold};
use tilewise::{DType, Device};

use crate::{Error, Result};

/// The form of file that this program writes and reads.
pub const SCHEMA: u32 = 1;

/// The kernel for few rows, and the one for many.
pub const FEW: &str = "decode-split-kv";
/// See [`FEW`].
pub const MANY: &str = "prefill";

/// Thresholds of one device, with the measurements that they rest on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyFile {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The adapter, its backend and its driver: the file is refused on any other.
    pub device: String,
    /// One for each width and type.
    pub thresholds: Vec<RowThreshold>,
    /// What was measured.
    pub measured: Vec<Measurement>,
}

/// Up to how many rows [`FEW`] wins; [`MANY`] takes the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowThreshold {
    /// Elements per head.
    pub head_dim: usize,
    /// The type of keys and values.
    pub kv_dtype: String,
    /// Queries times query heads per KV head.
    pub rows: usize,
}

/// The time of one kernel on one shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Elements per head.
    pub head_dim: usize,
    /// The type of keys and values.
    pub kv_dtype: String,
    /// Queries times query heads per KV head.
    pub rows: usize,
    /// Keys per sequence.
    pub kv_len: usize,
    /// The kernel.
    pub kernel: String,
    /// The median of the seconds that a launch took.
    pub median_s: f64,
    /// Samples that it is the median of.
    pub runs: usize,
}

impl PolicyFile {
    /// The thresholds that follow from measurements on a device.
    pub fn new(device: &dyn Device, measured: Vec<Measurement>) -> Self {
        let device = device.caps().description.clone();
        Self { schema: SCHEMA, device, thresholds: thresholds(&measured), measured }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or is no such file, [`Error::Policy`] for one of another schema.
    pub fn read(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| Error::file(&file, error))?;
        let Schema { schema } = serde_json::from_str(&text).map_err(|error| Error::file(&file, error))?;
        if schema != SCHEMA {
            let why = format!("it has schema {schema}, and this program reads {SCHEMA}");
            return Err(Error::Policy { file, why });
        }
        serde_json::from_str(&text).map_err(|error| Error::file(&file, error))
    }

    /// Writes it for people to read.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let file = |error: &dyn std::fmt::Display| Error::file(path.display().to_string(), error);
        let text = serde_json::to_string_pretty(self).map_err(|error| file(&error))?;
        std::fs::write(path, text + "\n").map_err(|error| file(&error))
    }

    /// Reads a file and lets it decide for a device's later plans. Results stay the same: only the kernels that
    /// compute them change.
    ///
    /// # Errors
    /// As [`PolicyFile::read`]; [`Error::Policy`] for one of another device, [`Error::Device`] if the device has a
    /// policy already.
    pub fn apply(path: &Path, device: &dyn Device) -> Result<()> {
        let policy = Self::read(path)?;
        let file = path.display().to_string();
        let own = &device.caps().description;
        if policy.device != *own {
            let why = format!("it was measured on {}, and this is {own}", policy.device);
            return Err(Error::Policy { file, why });
        }
        let threshold = |row: &RowThreshold| {
            let kv_dtype: DType =
                row.kv_dtype.parse().map_err(|error: tilewise::Error| Error::file(&file, error))?;
            Ok(Threshold { head_dim: row.head_dim, kv_dtype, rows: row.rows, few: FEW, many: MANY })
        };
        let thresholds = policy.thresholds.iter().map(threshold).collect::<Result<_>>()?;
        Ok(device.policy().adopt(Measured { evidence: file, thresholds })?)
    }
}

/// For each width and type that both kernels were measured on, the rows up to which [`FEW`] wins without exception:
/// the product of its times over the lengths is the smaller one.
pub fn thresholds(measured: &[Measurement]) -> Vec<RowThreshold> {
    let kinds: BTreeSet<(usize, &str)> = measured.iter().map(|m| (m.head_dim, m.kv_dtype.as_str())).collect();
    let threshold = |(head_dim, kv_dtype): (usize, &str)| {
        // By rows: the logarithm of the product, and which kernels were seen.
        let mut advantage = BTreeMap::<usize, (f64, [bool; 2])>::new();
        for m in measured.iter().filter(|m| (m.head_dim, m.kv_dtype.as_str()) == (head_dim, kv_dtype)) {
            let (sum, seen) = advantage.entry(m.rows).or_default();
            match m.kernel.as_str() {
                FEW => (*sum, seen[0]) = (*sum - m.median_s.ln(), true),
                MANY => (*sum, seen[1]) = (*sum + m.median_s.ln(), true),
                _ => {}
            }
        }
        advantage.retain(|_, (_, seen)| *seen == [true; 2]);
        if advantage.is_empty() {
            return None;
        }
        let wins = advantage.iter().take_while(|(_, (sum, _))| *sum > 0.0).last();
        let rows = wins.map_or(0, |(rows, _)| *rows);
        Some(RowThreshold { head_dim, kv_dtype: kv_dtype.to_owned(), rows })
    };
    kinds.into_iter().filter_map(threshold).collect()
}

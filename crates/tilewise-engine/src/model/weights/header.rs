//! Headers of safetensors files and their index, any of which may lie.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// Where the tensors' data start, and what the header says of them: checked, so that all of them lie inside.
///
/// # Errors
/// [`Error::File`] or [`Error::Tensor`], which name the file and, where one is to blame, the tensor.
pub(super) fn read(file: &str, bytes: &[u8]) -> Result<(usize, Metadata)> {
    match SafeTensors::read_metadata(bytes) {
        Ok((header, metadata)) => Ok((8 + header, metadata)),
        Err(error) => Err(diagnose(file, bytes, &error)),
    }
}

/// Says in words what is wrong with a header that was refused.
fn diagnose(file: &str, bytes: &[u8], error: &safetensors::SafeTensorError) -> Error {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Error::file(file, format!("has only {} bytes, so it is not a safetensors file", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    let Some((json, data)) = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length))
    else {
        let why = format!(
            "declares a header of {length} bytes but has {} after the length: it is truncated, or not a \
             safetensors file; fetch it again",
            rest.len()
        );
        return Error::file(file, why);
    };
    let tensors: Map<String, Value> = match serde_json::from_slice(json) {
        Ok(tensors) => tensors,
        Err(_) => return Error::file(file, format!("has a broken header ({error}); fetch it again")),
    };
    let liar = tensors.iter().filter(|(name, _)| *name != "__metadata__").find_map(|(name, value)| {
        lie(value, data.len()).map(|why| Error::Tensor { file: file.to_owned(), tensor: name.clone(), why })
    });
    liar.unwrap_or_else(|| overlap(file, &tensors, data.len()))
}

/// What is wrong with one entry, if anything is.
fn lie(value: &Value, data: usize) -> Option<String> {
    let info: TensorInfo = match serde_json::from_value(value.clone()) {
        Ok(info) => info,
        Err(error) => return Some(format!("has a broken header entry: {error}")),
    };
    let (start, end) = info.data_offsets;
    if start > end || end > data {
        return Some(format!(
            "is said to be bytes {start} to {end} of {data}: the file is truncated or its header lies; \
             fetch it again"
        ));
    }
    let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |bits, &extent| bits.checked_mul(extent));
    (bits != (end - start).checked_mul(8)).then(|| {
        let (shape, dtype, bytes) = (&info.shape, info.dtype, end - start);
        format!(
            "is said to be {shape:?} of {dtype:?} in {bytes} bytes, which do not fit; fetch the file again"
        )
    })
}

/// Names the first tensor that does not start where the one before ends.
fn overlap(file: &str, tensors: &Map<String, Value>, data: usize) -> Error {
    let parsed = tensors.iter().filter_map(|(name, value)| {
        Some((name, serde_json::from_value::<TensorInfo>(value.clone()).ok()?.data_offsets))
    });
    let mut ranges: Vec<_> = parsed.collect();
    ranges.sort_by_key(|&(_, offsets)| offsets);
    let mut end = 0;
    for (name, offsets) in ranges {
        if offsets.0 != end {
            let what = if offsets.0 < end { "overlaps the one before it" } else { "leaves a gap before it" };
            let why = format!(
                "{what}: it starts at byte {} and that one ends at {end}; fetch the file again",
                offsets.0
            );
            return Error::Tensor { file: file.to_owned(), tensor: name.clone(), why };
        }
        end = offsets.1;
    }
    Error::file(file, format!("has {data} bytes of data but its tensors take {end}; fetch it again"))
}

/// The tensors of each shard that an index names.
///
/// # Errors
/// [`Error::File`], also for a shard that is not a path below the index: an index must not point out of its folder.
pub(in crate::model) fn read_index(file: &str, json: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let value: Value = serde_json::from_slice(json).map_err(|e| Error::file(file, e))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty()) else {
        return Err(Error::file(file, "has no weight_map; fetch the model again"));
    };
    let mut shards = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, shard) in map {
        let name = shard.as_str().filter(|name| is_below(name));
        let Some(name) = name else {
            return Err(Error::file(file, format!("{tensor} is in {shard}, which is not a file name")));
        };
        shards.entry(name.to_owned()).or_default().insert(tensor.clone());
    }
    Ok(shards)
}

/// Whether a path stays in the folder where it starts, on every system.
fn is_below(path: &str) -> bool {
    let plain = |part| matches!(part, Component::Normal(_));
    !path.is_empty() && !path.contains(['\\', ':', '\0']) && Path::new(path).components().all(plain)
}

//! Weights to a device.

use std::ops::ControlFlow;

use half::{bf16, f16};
use tilewise::{DType, Device, HostTensor, Linear, Tensor};

use super::Weights;
use crate::{Error, Result};

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are on the device.
    pub done: usize,
    /// Bytes that will be.
    pub total: usize,
}

/// Is told how far loading is, and may break it off.
pub type Report<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Where nobody looks how far loading is.
pub fn unwatched(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Brings a model's tensors to its device, each checked against the shape that the model asks for.
///
/// Each tensor's file pages are given back once it is packed, so that memory peaks at the weights and the
/// largest tensor not yet packed. Ask for the largest first, while little else is in memory.
pub struct Loader<'a> {
    weights: &'a Weights,
    device: &'a dyn Device,
    dtype: DType,
    report: &'a mut Report<'a>,
    progress: Progress,
}

impl<'a> Loader<'a> {
    /// Packs matrices in `dtype`; `total` bytes are expected and `report` is told after each tensor, where it may break off.
    pub fn new(
        weights: &'a Weights,
        device: &'a dyn Device,
        dtype: DType,
        total: usize,
        report: &'a mut Report<'a>,
    ) -> Self {
        Self { weights, device, dtype, report, progress: Progress { done: 0, total } }
    }

    /// The matrices `{name}.weight`, `[out, in_features]` of each part `(name, out)`, under each other; with
    /// `{name}.bias` if `bias` is set.
    ///
    /// # Errors
    /// [`crate::Error::Tensor`] for a tensor that is missing or of another shape or type, [`crate::Error::Cancelled`] when it
    /// is broken off.
    pub fn linear(&mut self, parts: &[(String, usize)], in_features: usize, bias: bool) -> Result<Linear> {
        let names: Vec<String> = parts.iter().map(|(name, _)| format!("{name}.weight")).collect();
        let bias = if bias { Some(self.biases(parts)?) } else { None };
        let mut pieces = Vec::new();
        for (name, &(_, out)) in names.iter().zip(parts) {
            match &self.weights.dummy {
                Some(dummy) => {
                    let matrix = dummy.matrix(name, out, in_features)?;
                    pieces.extend(
                        matrix.into_iter().map(|(rows, bytes)| ([rows, in_features], DType::Bf16, bytes)),
                    );
                }
                None => {
                    let (dtype, bytes) = self.weights.tensor(name, &[out, in_features])?;
                    pieces.push(([out, in_features], dtype, bytes));
                }
            }
        }
        let host = pieces.iter().map(|(shape, dtype, bytes)| HostTensor::new(shape, *dtype, bytes));
        let host = host.collect::<tilewise::Result<Vec<_>>>()?;
        let linear = self.device.pack_linear(&host, bias.as_deref(), self.dtype)?;
        let bytes = host.iter().map(|tensor| tensor.bytes.len()).sum();
        names.iter().for_each(|name| self.weights.release(name));
        self.advance(bytes)?;
        Ok(linear)
    }

    /// The vector `name`, `[len]`, in f32.
    ///
    /// # Errors
    /// As [`Loader::linear`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Tensor> {
        let values = self.values(name, len)?;
        Ok(self.device.upload(HostTensor::f32(&[len], &values)?)?)
    }

    fn biases(&mut self, parts: &[(String, usize)]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        for (name, len) in parts {
            all.extend(self.values(&format!("{name}.bias"), *len)?);
        }
        Ok(all)
    }

    fn values(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (dtype, bytes) = match &self.weights.dummy {
            Some(_) if name.ends_with("norm.weight") => return Ok(vec![1.0; len]),
            Some(dummy) => (DType::Bf16, dummy.matrix(name, 1, len)?[0].1),
            None => self.weights.tensor(name, &[len])?,
        };
        let values = widen(dtype, bytes);
        let bytes = bytes.len();
        if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
            let why = format!("holds {bad}; fetch the model again");
            return Err(self.weights.error(name, self.weights.tensors.get(name), why));
        }
        self.weights.release(name);
        self.advance(bytes)?;
        Ok(values)
    }

    fn advance(&mut self, bytes: usize) -> Result<()> {
        self.progress.done = (self.progress.done + bytes).min(self.progress.total);
        match (self.report)(self.progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        }
    }
}

/// Numbers of a file, which are little-endian as are all machines that this runs on.
fn widen(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = |convert: fn([u8; 2]) -> f32| bytes.as_chunks::<2>().0.iter().map(|&b| convert(b)).collect();
    match dtype {
        DType::F16 => halves(|b| f16::from_le_bytes(b).to_f32()),
        DType::Bf16 => halves(|b| bf16::from_le_bytes(b).to_f32()),
        _ => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
    }
}

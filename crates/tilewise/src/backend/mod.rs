//! The list of backends.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;

use std::sync::Arc;

use crate::{Device, Error, Result};

/// What there is to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSummary {
    /// The name to open it by: `cpu`, `gpu:0`.
    pub name: String,
    /// What it is: instruction set and threads, or what its driver says.
    pub description: String,
    /// Whether it is a processor that plays a GPU.
    pub software: bool,
}

pub(crate) fn devices() -> Result<Vec<DeviceSummary>> {
    let caps = cpu::CpuDevice::new(None)?.caps().clone();
    let cpu = DeviceSummary { name: caps.name, description: caps.description, software: false };
    Ok([cpu].into_iter().chain(adapters()).collect())
}

pub(crate) fn open(name: &str, threads: Option<usize>) -> Result<Arc<dyn Device>> {
    let why = "no such device; use auto, cpu, gpu or gpu:N".to_owned();
    let unknown = Error::Device { device: name.to_owned(), why };
    match name {
        "auto" => auto(threads),
        "cpu" => Ok(Arc::new(cpu::CpuDevice::new(threads)?)),
        "gpu" => gpu(0),
        _ => match name.strip_prefix("gpu:").map(str::parse) {
            Some(Ok(index)) => gpu(index),
            _ => Err(unknown),
        },
    }
}

/// The first real GPU that can be opened, or the processor: software adapters are slower than it.
fn auto(threads: Option<usize>) -> Result<Arc<dyn Device>> {
    let adapters = adapters();
    let real = adapters.iter().enumerate().filter(|(_, adapter)| !adapter.software);
    match real.filter_map(|(index, _)| gpu(index).ok()).next() {
        Some(gpu) => Ok(gpu),
        None => open("cpu", threads),
    }
}

#[cfg(feature = "gpu")]
fn adapters() -> Vec<DeviceSummary> {
    gpu::GpuDevice::adapters()
}

#[cfg(not(feature = "gpu"))]
fn adapters() -> Vec<DeviceSummary> {
    Vec::new()
}

#[cfg(feature = "gpu")]
fn gpu(index: usize) -> Result<Arc<dyn Device>> {
    Ok(Arc::new(gpu::GpuDevice::new(index)?))
}

#[cfg(not(feature = "gpu"))]
fn gpu(index: usize) -> Result<Arc<dyn Device>> {
    let why = "this build has no GPU backend; use cpu".to_owned();
    Err(Error::Device { device: format!("gpu:{index}"), why })
}

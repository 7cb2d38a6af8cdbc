//! The list of backends.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;

use std::sync::Arc;

use crate::{Device, Error, Result};

pub(crate) fn open(name: &str, threads: Option<usize>) -> Result<Arc<dyn Device>> {
    let fail = |why: &str| Err(Error::Device { device: name.to_owned(), why: why.to_owned() });
    match name {
        "cpu" => Ok(Arc::new(cpu::CpuDevice::new(threads)?)),
        "gpu" => gpu(0),
        _ if name.starts_with("gpu:") => match name[4..].parse() {
            Ok(index) => gpu(index),
            Err(_) => fail("no such device; use cpu, gpu or gpu:N"),
        },
        _ => fail("no such device; use cpu, gpu or gpu:N"),
    }
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

//! The list of backends.

pub mod cpu;

use std::sync::Arc;

use crate::{Device, Error, Result};

pub(crate) fn open(name: &str, threads: Option<usize>) -> Result<Arc<dyn Device>> {
    let fail = |why: &str| Err(Error::Device { device: name.to_owned(), why: why.to_owned() });
    match name {
        "cpu" => Ok(Arc::new(cpu::CpuDevice::new(threads)?)),
        _ if name == "gpu" || name.starts_with("gpu:") => fail("this build has no GPU backend; use cpu"),
        _ => fail("no such device; use cpu"),
    }
}

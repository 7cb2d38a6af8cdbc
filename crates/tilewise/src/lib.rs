//! Exact attention and its neighbours: plan once per batch, run once per layer.
//!
//! A result row depends on its own query, keys and weights only, in every bit: not on the batch it is in, on how
//! its prompt was cut into chunks, on the page size, or on the number of threads.
//!
//! ```
//! use std::sync::Arc;
//! use tilewise::{AttentionParams, BatchLayout, DType, HostTensor, Kv, TokenView};
//!
//! let device = tilewise::open("cpu", None)?;
//! // Two sequences of 3 and 1 new tokens, with 3 and 5 keys, 4 query heads over 2 KV heads of 64.
//! let layout = Arc::new(BatchLayout::ragged(vec![0, 3, 4], vec![3, 5])?);
//! let plan = device.plan_attention(&AttentionParams::new(4, 2, 64), &layout, None)?;
//!
//! let q = device.upload(HostTensor::f32(&[4, 4, 64], &[0.5; 4 * 4 * 64])?)?;
//! let k = device.upload(HostTensor::f32(&[8, 2, 64], &[0.1; 8 * 2 * 64])?)?;
//! let v = device.upload(HostTensor::f32(&[8, 2, 64], &[2.0; 8 * 2 * 64])?)?;
//! let mut out = device.alloc(&[4, 4, 64], DType::F32)?;
//! let kv = Kv::Contiguous { keys: TokenView::ragged(&k)?, values: TokenView::ragged(&v)? };
//! device.attention(&plan, TokenView::ragged(&q)?, kv, &mut out, None)?;
//! assert!(device.download(&out)?.iter().all(|x| (x - 2.0).abs() < 1e-6));
//! # Ok::<(), tilewise::Error>(())
//! ```

mod attention;
pub mod backend;
mod checks;
mod device;
pub mod dispatch;
mod dtype;
mod error;
mod file;
mod kv;
mod layout;
pub mod plan;
pub mod reference;
mod sampling;
mod softmax;
mod tensor;

use std::sync::Arc;

pub use attention::{AttentionParams, Mask};
pub use backend::DeviceSummary;
pub use device::{Ceilings, Counts, Device, DeviceCaps, HeadSpan, Kv, Linear, NormedRows, RotaryHeads};
pub use dtype::DType;
pub use error::{Error, Result};
pub use file::MappedFile;
pub use kv::{KvCache, KvCacheConfig, KvLayer, PageLayout};
pub use layout::{BatchLayout, PageTable};
pub use plan::AttentionPlan;
pub use sampling::{Draw, LogitChange, Logprobs, LogprobsOf, NotFinite, Sampled};
pub use softmax::SoftmaxState;
pub use tensor::{DeviceBuffer, HostTensor, Tensor, TokenView};

/// The devices of this machine: the processor, then GPU adapters, real ones first.
///
/// # Errors
/// [`Error::Device`] if the processor lacks what the library needs.
pub fn devices() -> Result<Vec<DeviceSummary>> {
    backend::devices()
}

/// Opens a device by name: `cpu`, `gpu` (the first adapter), `gpu:1`, or `auto`, which is the first real GPU that can be
/// opened and otherwise the processor. `threads` are the processor's and default to its number of cores.
///
/// # Errors
/// [`Error::Device`] if there is none of that name.
pub fn open(name: &str, threads: Option<usize>) -> Result<Arc<dyn Device>> {
    backend::open(name, threads)
}

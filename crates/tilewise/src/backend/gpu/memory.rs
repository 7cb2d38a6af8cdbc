//! Device memory: buffers that return to a pool when their tensor goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::context::Context;
use crate::{DeviceBuffer, Error, Result, Tensor};

/// Bytes that the pool keeps at most.
const KEEP: u64 = 256 << 20;

/// Freed buffers, by size.
#[derive(Default)]
pub(super) struct Pool {
    free: Mutex<Free>,
    staging: Mutex<Vec<wgpu::Buffer>>,
}

#[derive(Default)]
struct Free {
    /// With the submission that last used each.
    by_size: BTreeMap<u64, Vec<(wgpu::Buffer, u64)>>,
    bytes: u64,
}

impl Pool {
    /// A buffer that can be read back, of at least `len` bytes.
    pub(super) fn staging(&self, device: &wgpu::Device, len: u64) -> wgpu::Buffer {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = staging.iter().position(|buffer| buffer.size() >= len) {
            return staging.swap_remove(at);
        }
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("read back"),
            size: len.next_power_of_two().max(4096),
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    }

    pub(super) fn return_staging(&self, buffer: wgpu::Buffer) {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        if staging.len() < 4 && buffer.size() <= KEEP {
            staging.push(buffer);
        }
    }

    /// A buffer that was last used before the submission `before`.
    fn take(&self, size: u64, before: u64) -> Option<(wgpu::Buffer, u64)> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = free.by_size.get_mut(&size)?;
        let at = buffers.iter().rposition(|(_, last_use)| *last_use < before)?;
        let buffer = buffers.swap_remove(at);
        free.bytes -= size;
        Some(buffer)
    }

    /// Keeps a buffer, or says that it has to go.
    fn give(&self, buffer: wgpu::Buffer, last_use: u64) -> Option<wgpu::Buffer> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let size = buffer.size();
        if free.bytes + size > KEEP || size > KEEP / 8 {
            return Some(buffer);
        }
        free.bytes += size;
        free.by_size.entry(size).or_default().push((buffer, last_use));
        None
    }
}

/// Device memory of a tensor.
pub(super) struct GpuBuffer {
    buffer: Option<wgpu::Buffer>,
    context: Arc<Context>,
    last_use: AtomicU64,
    /// The largest of the numbers written, where they are u32: kernels need not check their ids.
    pub largest: AtomicU32,
}

impl DeviceBuffer for GpuBuffer {}

impl GpuBuffer {
    /// At least `len` bytes of any content.
    pub(super) fn new(context: &Arc<Context>, what: impl Fn() -> String, len: u64) -> Result<Self> {
        Self::last_used_before(u64::MAX, context, what, len)
    }

    /// The same for what the host writes in the middle of a step: commands that wait must not use it, or they would
    /// have to be submitted first.
    pub(super) fn to_write(context: &Arc<Context>, what: impl Fn() -> String, len: u64) -> Result<Self> {
        Self::last_used_before(context.epoch(), context, what, len)
    }

    fn last_used_before(
        before: u64,
        context: &Arc<Context>,
        what: impl Fn() -> String,
        len: u64,
    ) -> Result<Self> {
        context.check()?;
        let size = size_class(len);
        let out_of_memory = || Error::OutOfMemory { what: what(), bytes: len as usize };
        if size > context.abilities.binding {
            return Err(out_of_memory());
        }
        let (buffer, last_use) = match context.pool.take(size, before) {
            Some(pooled) => pooled,
            None => {
                let scope = context.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
                let buffer = context.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage: wgpu::BufferUsages::STORAGE
                        | wgpu::BufferUsages::COPY_DST
                        | wgpu::BufferUsages::COPY_SRC,
                    mapped_at_creation: false,
                });
                if pollster::block_on(scope.pop()).is_some() {
                    return Err(out_of_memory());
                }
                (buffer, 0)
            }
        };
        let last_use = AtomicU64::new(last_use);
        Ok(Self { buffer: Some(buffer), context: context.clone(), last_use, largest: AtomicU32::new(0) })
    }

    pub(super) fn raw(&self) -> &wgpu::Buffer {
        self.buffer.as_ref().expect("a buffer is taken out by drop alone")
    }

    /// Whether the buffer is of this device.
    pub(super) fn is_of(&self, context: &Context) -> bool {
        std::ptr::eq(&*self.context, context)
    }

    pub(super) fn used_in(&self, epoch: u64) {
        self.last_use.store(epoch, Ordering::Relaxed);
    }

    pub(super) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        let Some(buffer) = self.buffer.take() else { return };
        if let Some(buffer) = self.context.pool.give(buffer, self.last_use()) {
            self.context.pipelines.forget(&buffer);
        }
    }
}

/// Memory between the launches of one operation, as large as the largest needed so far.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Option<GpuBuffer>>);

impl Scratch {
    /// At least `len` bytes, for as long as the guard lives: no other thread's launches come between.
    pub(super) fn lock(&self, context: &Arc<Context>, len: u64) -> Result<ScratchGuard<'_>> {
        let mut scratch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.as_ref().is_none_or(|buffer| buffer.raw().size() < len) {
            *scratch = None;
            *scratch = Some(GpuBuffer::new(context, || "memory between launches".to_owned(), len)?);
        }
        Ok(ScratchGuard(scratch))
    }
}

/// Memory that one operation has to itself.
pub(super) struct ScratchGuard<'a>(MutexGuard<'a, Option<GpuBuffer>>);

impl ScratchGuard<'_> {
    pub(super) fn buffer(&self) -> &GpuBuffer {
        self.0.as_ref().expect("a guard is made with a buffer")
    }
}

/// Sizes are rounded so that the pool has few classes, by an eighth at most from 2 KiB on.
fn size_class(len: u64) -> u64 {
    let len = len.max(256);
    let step = (len.next_power_of_two() / 16).max(256);
    len.next_multiple_of(step)
}

/// The device memory behind a tensor of this backend.
pub(super) fn gpu(tensor: &Tensor) -> Result<&GpuBuffer> {
    buffer_of(tensor.buffer())
}

/// The device memory behind a buffer of this backend.
pub(super) fn buffer_of(buffer: &dyn DeviceBuffer) -> Result<&GpuBuffer> {
    (buffer as &dyn std::any::Any)
        .downcast_ref()
        .ok_or_else(|| Error::shape("tensor", "belongs to another device than the gpu"))
}

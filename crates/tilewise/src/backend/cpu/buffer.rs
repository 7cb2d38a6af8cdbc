//! Host memory behind tensors: zeroed, aligned to a cache line, in huge pages where it is large.

use crate::{DeviceBuffer, Error, Result, Tensor};

/// Allocations from this size on are mapped by themselves, so that they can ask for huge pages.
const LARGE: usize = 4 << 20;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

enum Memory {
    Small(Vec<Line>),
    Large(memmap2::MmapMut),
}

/// Bytes that start on a cache line.
pub(crate) struct HostBuffer {
    memory: Memory,
    len: usize,
}

impl DeviceBuffer for HostBuffer {}

impl HostBuffer {
    /// `len` zero bytes.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let memory = if len < LARGE {
            Memory::Small(vec![Line([0; 64]); len.div_ceil(64)])
        } else {
            let out_of_memory = |_| Error::OutOfMemory { what: "a host buffer".to_owned(), bytes: len };
            let map = memmap2::MmapMut::map_anon(len).map_err(out_of_memory)?;
            // Streaming a gigabyte of weights per token misses the TLB at every 4 KiB page otherwise. Advice only.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            Memory::Large(map)
        };
        Ok(Self { memory, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.memory {
            Memory::Small(lines) => &bytemuck::cast_slice(lines)[..self.len],
            Memory::Large(map) => &map[..],
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Small(lines) => &mut bytemuck::cast_slice_mut(lines)[..self.len],
            Memory::Large(map) => &mut map[..],
        }
    }

    /// All elements as `T`.
    pub(crate) fn slice<T: bytemuck::Pod>(&self) -> &[T] {
        bytemuck::cast_slice(self.bytes())
    }

    /// All elements as `T`, to write to.
    pub(crate) fn slice_mut<T: bytemuck::Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(self.bytes_mut())
    }
}

/// The host memory of a buffer of this backend.
pub(crate) fn host(buffer: &dyn DeviceBuffer) -> Result<&HostBuffer> {
    (buffer as &dyn std::any::Any)
        .downcast_ref()
        .ok_or_else(|| Error::shape("tensor", "belongs to another device than the cpu"))
}

/// The same to write to.
pub(crate) fn host_mut(buffer: &mut dyn DeviceBuffer) -> Result<&mut HostBuffer> {
    (buffer as &mut dyn std::any::Any)
        .downcast_mut()
        .ok_or_else(|| Error::shape("tensor", "belongs to another device than the cpu"))
}

/// The elements of a tensor; `T` must have the size of its dtype.
pub(crate) fn elements<T: bytemuck::Pod>(tensor: &Tensor) -> Result<&[T]> {
    check_size::<T>(tensor)?;
    Ok(&host(tensor.buffer())?.slice()[..tensor.len()])
}

/// The elements of a tensor, to write to; `T` must have the size of its dtype.
pub(crate) fn elements_mut<T: bytemuck::Pod>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check_size::<T>(tensor)?;
    let len = tensor.len();
    Ok(&mut host_mut(tensor.buffer_mut())?.slice_mut()[..len])
}

fn check_size<T>(tensor: &Tensor) -> Result<()> {
    if size_of::<T>() != tensor.dtype().size() {
        return Err(Error::shape("tensor", format!("{tensor:?} has elements of another size")));
    }
    Ok(())
}

/// The f32 elements of a tensor.
pub(crate) fn f32s<'a>(op: &'static str, tensor: &'a Tensor) -> Result<&'a [f32]> {
    if tensor.dtype() != crate::DType::F32 {
        return Err(Error::shape(op, format!("needs f32, got {tensor:?}")));
    }
    elements(tensor)
}

/// The f32 elements of a tensor, to write to.
pub(crate) fn f32s_mut<'a>(op: &'static str, tensor: &'a mut Tensor) -> Result<&'a mut [f32]> {
    if tensor.dtype() != crate::DType::F32 {
        return Err(Error::shape(op, format!("needs f32, got {tensor:?}")));
    }
    elements_mut(tensor)
}

/// A mutable slice whose disjoint parts several threads write.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `get` leaves it to its callers that parts handed to different threads do not overlap.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// Elements `start..start + len`.
    ///
    /// # Safety
    /// No two live parts may overlap, and the slice must outlive them.
    #[allow(clippy::mut_from_ref)] // disjointness is the caller's, as said above
    pub(crate) unsafe fn get(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the slice by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

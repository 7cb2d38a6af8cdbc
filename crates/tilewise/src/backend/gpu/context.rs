//! The adapter, its queue, and the commands that wait to be submitted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::Features;

use super::elements::Elements;
use super::memory::{GpuBuffer, Pool};
use super::pipeline::Pipelines;
use crate::{Counts, Error, Result};

/// An idle device is given its first launches after this many, and starts while more are recorded; each submission
/// after it has twice as many as the one before, up to `MOST`.
const FIRST: u64 = 8;
const MOST: u64 = 256;

/// What is asked of an adapter, where it has it.
const WANTED: Features = Features::SHADER_F16
    .union(Features::SUBGROUP)
    .union(Features::SUBGROUP_BARRIER)
    .union(Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
    .union(Features::IMMEDIATES)
    .union(Features::TIMESTAMP_QUERY)
    .union(Features::PIPELINE_CACHE)
    .union(Features::PASSTHROUGH_SHADERS);

/// What an adapter can do, as far as kernels are chosen by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Abilities {
    /// Rows and columns of its matrix unit's tiles with f16 in and f32 out; `None` without one.
    pub matrix_tile: Option<u32>,
    /// Threads of a subgroup, where they are always as many.
    pub subgroup: Option<u32>,
    /// Whether matrix operations take pointers to vectors: as SPIR-V, not as MSL.
    pub vector_tiles: bool,
    /// Which elements of matrices threads hold, where kernels can compute with them: as SPIR-V.
    pub elements: Option<Elements>,
    /// Bytes of workgroup memory, and threads, of a work group at most.
    pub workgroup_memory: u32,
    pub workgroup_threads: u32,
    /// Bytes of the largest buffer that a kernel can see.
    pub binding: u64,
    /// Work groups that keep it busy to the end of a launch: four for each multiprocessor of a large GPU.
    pub busy: usize,
}

/// How matrix units are used, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matrices {
    Unused,
    /// Matrices are loaded, multiplied and stored.
    Whole,
    /// Kernels compute with their elements too.
    Elements,
}

/// A device with its queue, memory and pipelines.
pub(super) struct Context {
    pub name: String,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub abilities: Abilities,
    pub pipelines: Pipelines,
    pub pool: Pool,
    recorder: Mutex<Recorder>,
    /// Counts submissions; what a buffer was last used in.
    epoch: AtomicU64,
    failure: Arc<Mutex<Option<String>>>,
}

/// Commands that are recorded but not submitted.
struct Recorder {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    launches: u64,
    /// Launches that are submitted together.
    together: u64,
    /// Launches and submissions since the device was opened.
    total: Counts,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { encoder: None, pass: None, launches: 0, together: FIRST, total: Counts::default() }
    }
}

/// Some bytes of a buffer.
#[derive(Clone, Copy)]
pub(super) struct Span<'a> {
    pub buffer: &'a GpuBuffer,
    pub start: u64,
    pub len: u64,
}

/// One launch of a kernel.
pub(super) struct Launch<'a> {
    pub kernel: &'a super::pipeline::Pipeline,
    /// In the order of the bindings.
    pub buffers: &'a [&'a GpuBuffer],
    /// The kernel's arguments.
    pub immediates: &'a [u8],
    pub groups: [u32; 3],
}

/// All adapters, real ones first.
pub(super) fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

/// Whether an adapter is a processor that plays a GPU.
pub(super) fn is_software(info: &wgpu::AdapterInfo) -> bool {
    info.device_type == wgpu::DeviceType::Cpu
}

impl Context {
    pub(super) fn open(name: &str, adapter: &wgpu::Adapter, matrices: Matrices) -> Result<Self> {
        let fail = |why: String| Error::Device { device: name.to_owned(), why };
        let info = adapter.get_info();
        let features = adapter.features() & WANTED;
        if !features.contains(Features::IMMEDIATES) {
            return Err(fail(format!("{} has no immediate data", info.name)));
        }
        let limits = adapter.limits();
        // SAFETY: the experimental part is cooperative matrices, whose known faults (alignment of workgroup memory,
        // work groups of one subgroup) the kernels are written around.
        let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("tilewise"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            memory_hints: wgpu::MemoryHints::Performance,
            trace: wgpu::Trace::Off,
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|error| fail(error.to_string()))?;
        let failure = Arc::new(Mutex::new(None));
        let note = failure.clone();
        device.set_device_lost_callback(move |reason, why| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                remember(&note, format!("lost: {why}"));
            }
        });
        let note = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| remember(&note, error.to_string())));
        // Metal does not say how wide a subgroup is; with matrix units it is always 32.
        let is_apple = info.backend == wgpu::Backend::Metal
            && features.contains(Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
        let widths = if is_apple { [32; 2] } else { [info.subgroup_min_size, info.subgroup_max_size] };
        let subgroup = (features.contains(Features::SUBGROUP) && widths[0] == widths[1]).then_some(widths[0]);
        let has_matrices =
            matrices != Matrices::Unused && takes_matrices(&info, features) && subgroup.is_some();
        let matrix_tile = if has_matrices { matrix_tile(adapter) } else { None };
        let mut pipelines = Pipelines::new(&device, &info);
        let elements = match (matrices, matrix_tile, subgroup) {
            (Matrices::Elements, Some(tile), Some(subgroup)) => {
                pipelines.ask_elements(&device, &queue, tile, subgroup)
            }
            _ => None,
        };
        let abilities = Abilities {
            matrix_tile,
            subgroup,
            vector_tiles: info.backend == wgpu::Backend::Vulkan,
            elements,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_threads: limits.max_compute_invocations_per_workgroup,
            // Kernels count elements in 32 bits.
            binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(0xffff_ff00),
            busy: if is_software(&info) { 4 } else { 512 },
        };
        Ok(Self {
            name: name.to_owned(),
            pipelines,
            pool: Pool::default(),
            recorder: Mutex::default(),
            epoch: AtomicU64::new(1),
            device,
            queue,
            info,
            abilities,
            failure,
        })
    }

    /// An error if the device has failed; it never recovers.
    pub(super) fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(why) => Err(Error::Device { device: self.name.clone(), why: why.clone() }),
        }
    }

    /// The submission that commands recorded now will be part of.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { kernels: self.pipelines.count(), ..self.lock().total }
    }

    fn lock(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a launch.
    pub(super) fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        if launch.groups.contains(&0) {
            return Ok(());
        }
        self.check()?;
        self.check_own(launch.buffers.iter().copied())?;
        let bind_group = self.pipelines.bind_group(&self.device, launch.kernel, launch.buffers);
        let mut recorder = self.lock();
        let epoch = self.epoch();
        launch.buffers.iter().for_each(|buffer| buffer.used_in(epoch));
        let recorder = &mut *recorder;
        let pass = recorder.pass.get_or_insert_with(|| {
            let encoder = recorder
                .encoder
                .get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
            encoder.begin_compute_pass(&Default::default()).forget_lifetime()
        });
        pass.set_pipeline(&launch.kernel.pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        if !launch.immediates.is_empty() {
            pass.set_immediates(0, launch.immediates);
        }
        let [x, y, z] = launch.groups;
        pass.dispatch_workgroups(x, y, z);
        recorder.launches += 1;
        recorder.total.launches += 1;
        if recorder.launches >= recorder.together {
            self.submit_locked(recorder);
        }
        Ok(())
    }

    /// Writes to a buffer, after everything recorded so far.
    pub(super) fn write(&self, buffer: &GpuBuffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check()?;
        let mut recorder = self.lock();
        if buffer.last_use() == self.epoch() {
            self.submit_locked(&mut recorder);
        }
        let whole = bytes.len() / 4 * 4;
        self.queue.write_buffer(buffer.raw(), offset, &bytes[..whole]);
        if whole < bytes.len() {
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue.write_buffer(buffer.raw(), offset + whole as u64, &last);
        }
        Ok(())
    }

    /// Fills a buffer with zeros.
    pub(super) fn clear(&self, buffer: &GpuBuffer) -> Result<()> {
        self.check()?;
        let mut recorder = self.lock();
        recorder.pass = None;
        buffer.used_in(self.epoch());
        let encoder =
            recorder.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        encoder.clear_buffer(buffer.raw(), 0, None);
        Ok(())
    }

    /// Waits until what has been written is on the device, so that the host's copies go.
    pub(super) fn flush_writes(&self) -> Result<()> {
        self.submit();
        self.queue.submit([]);
        self.wait()
    }

    /// Copies spans to spans of other buffers that are as long, one after the other and after what is recorded.
    pub(super) fn copy(&self, copies: &[(Span<'_>, Span<'_>)]) -> Result<()> {
        self.check()?;
        self.check_own(copies.iter().flat_map(|(from, to)| [from.buffer, to.buffer]))?;
        let mut recorder = self.lock();
        recorder.pass = None;
        let epoch = self.epoch();
        let encoder =
            recorder.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
        for (from, to) in copies {
            from.buffer.used_in(epoch);
            to.buffer.used_in(epoch);
            encoder.copy_buffer_to_buffer(from.buffer.raw(), from.start, to.buffer.raw(), to.start, from.len);
        }
        Ok(())
    }

    fn check_own<'a>(&self, mut buffers: impl Iterator<Item = &'a GpuBuffer>) -> Result<()> {
        if buffers.any(|buffer| !buffer.is_of(self)) {
            let why = format!("a tensor belongs to another device than {}", self.name);
            return Err(Error::Shape { op: "tensor", why });
        }
        Ok(())
    }

    /// Replaces `bytes` by what buffers hold, one span after the other, after everything recorded so far. All spans but
    /// the last are multiples of 4 bytes.
    pub(super) fn read(&self, spans: &[Span<'_>], bytes: &mut Vec<u8>) -> Result<()> {
        self.check_own(spans.iter().map(|span| span.buffer))?;
        bytes.clear();
        let len: u64 = spans.iter().map(|span| span.len).sum();
        if len == 0 {
            return Ok(());
        }
        self.check()?;
        let staging = self.pool.staging(&self.device, len);
        {
            let mut recorder = self.lock();
            recorder.total.downloads += 1;
            recorder.pass = None;
            let encoder = recorder
                .encoder
                .get_or_insert_with(|| self.device.create_command_encoder(&Default::default()));
            let mut to = 0;
            for span in spans {
                let whole = span.len.next_multiple_of(4);
                encoder.copy_buffer_to_buffer(span.buffer.raw(), span.start, &staging, to, whole);
                to += span.len;
            }
            self.submit_locked(&mut recorder);
            recorder.together = FIRST;
        }
        let slice = staging.slice(..len.next_multiple_of(4));
        slice.map_async(wgpu::MapMode::Read, |_| {});
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        let failed = |why: String| Error::Device { device: self.name.clone(), why };
        waited.map_err(|error| failed(error.to_string()))?;
        let mapped = slice.get_mapped_range().map_err(|error| failed(error.to_string()))?;
        bytes.extend_from_slice(&mapped[..len as usize]);
        drop(mapped);
        staging.unmap();
        self.pool.return_staging(staging);
        Ok(())
    }

    /// Waits until everything recorded so far is done.
    pub(super) fn wait(&self) -> Result<()> {
        {
            let mut recorder = self.lock();
            self.submit_locked(&mut recorder);
            recorder.together = FIRST;
        }
        let waited = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        waited.map_err(|error| Error::Device { device: self.name.clone(), why: error.to_string() })?;
        Ok(())
    }

    /// Submits what is recorded.
    pub(super) fn submit(&self) {
        self.submit_locked(&mut self.lock());
    }

    fn submit_locked(&self, recorder: &mut Recorder) {
        recorder.pass = None;
        recorder.launches = 0;
        recorder.together = MOST.min(recorder.together * 2);
        if let Some(encoder) = recorder.encoder.take() {
            self.queue.submit([encoder.finish()]);
            recorder.total.submissions += 1;
            self.epoch.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Whether the kernels for matrix units can run: Vulkan's barriers have to say what they order, which the translation of
/// wgpu does not.
fn takes_matrices(info: &wgpu::AdapterInfo, features: Features) -> bool {
    let needed =
        Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SUBGROUP_BARRIER | Features::SHADER_F16;
    let can_order = info.backend != wgpu::Backend::Vulkan || features.contains(Features::PASSTHROUGH_SHADERS);
    features.contains(needed) && can_order
}

/// Keeps the first failure, which is the cause of the others.
fn remember(failure: &Mutex<Option<String>>, why: String) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
}

/// The largest square tile with f16 in and f32 out that the kernels are written for.
fn matrix_tile(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let has = |size: u32| {
        adapter.cooperative_matrix_properties().iter().any(|p| {
            (p.m_size, p.n_size, p.k_size) == (size, size, size) && p.ab_type == F16 && p.cr_type == F32
        })
    };
    [16, 8].into_iter().find(|&size| has(size))
}

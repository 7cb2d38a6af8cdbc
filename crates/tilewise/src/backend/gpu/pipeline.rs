//! Kernels from WGSL templates: specialised, compiled once, and kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::elements::{self, Elements};
use super::memory::GpuBuffer;
use super::spirv::{self, SubgroupBarrier};
use super::{context, template};

/// What a kernel is made of: a template and the words it is specialised with.
#[derive(Debug, Clone)]
pub(super) struct Specialisation {
    /// Its name, for errors and traces.
    pub name: &'static str,
    /// The template.
    pub source: &'static str,
    /// Values of the template's names.
    pub values: Vec<(&'static str, Value)>,
}

/// A name has one template: its text is not looked at.
impl PartialEq for Specialisation {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.values == other.values
    }
}

impl Eq for Specialisation {}

impl std::hash::Hash for Specialisation {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.values.hash(state);
    }
}

/// What a name of a template stands for. A kernel is looked up at every launch: no text is made for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Value {
    Number(i64),
    Word(&'static str),
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as i64)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(i64::from(number))
    }
}

impl From<&'static str> for Value {
    fn from(word: &'static str) -> Self {
        Self::Word(word)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Word(word) => f.write_str(word),
        }
    }
}

impl Specialisation {
    /// A template with no values yet.
    pub(super) fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, values: Vec::with_capacity(48) }
    }

    /// The same with a name set.
    #[must_use]
    pub(super) fn set(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.values.push((name, value.into()));
        self
    }

    /// The WGSL text.
    pub(super) fn expand(&self) -> String {
        let values: Vec<(&str, String)> = self.values.iter().map(|(n, v)| (*n, v.to_string())).collect();
        template::expand(self.source, &values).unwrap_or_else(|why| panic!("kernel {}: {why}", self.name))
    }
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    id: usize,
}

/// All kernels compiled so far, and the bind groups made for them.
pub(super) struct Pipelines {
    compiled: Mutex<HashMap<Specialisation, Arc<Pipeline>>>,
    groups: Mutex<HashMap<(usize, Vec<wgpu::Buffer>), wgpu::BindGroup>>,
    cache: Option<wgpu::PipelineCache>,
    /// How barriers are translated, where the device takes SPIR-V as it is.
    spirv: Option<SubgroupBarrier>,
    /// Which elements of a matrix threads hold, where that is known.
    elements: Option<Elements>,
}

impl Pipelines {
    pub(super) fn new(device: &wgpu::Device, info: &wgpu::AdapterInfo) -> Self {
        let features = device.features();
        let takes_spirv =
            info.backend == wgpu::Backend::Vulkan && features.contains(wgpu::Features::PASSTHROUGH_SHADERS);
        let spirv = takes_spirv.then_some(match context::is_software(info) {
            true => SubgroupBarrier::Orders,
            false => SubgroupBarrier::Waits,
        });
        let cache = features.contains(wgpu::Features::PIPELINE_CACHE).then(|| {
            let descriptor =
                wgpu::PipelineCacheDescriptor { label: Some("tilewise"), data: None, fallback: true };
            // SAFETY: no data of unknown origin is handed in.
            unsafe { device.create_pipeline_cache(&descriptor) }
        });
        Self { compiled: Mutex::default(), groups: Mutex::default(), cache, spirv, elements: None }
    }

    /// Asks a device that takes SPIR-V which elements of matrices its threads hold. Kernels may then compute with them.
    pub(super) fn ask_elements(
        &mut self,
        device: &wgpu::Device,
        queue: &wgpu::Queue,
        tile: u32,
        subgroup: u32,
    ) -> Option<Elements> {
        self.spirv?;
        // A driver that cannot say is no failure of the device.
        let outer = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let inner = device.push_error_scope(wgpu::ErrorFilter::Internal);
        let pipeline = self.compile(device, &elements::kernel(tile, subgroup), usize::MAX);
        let elements = elements::ask(device, queue, &pipeline, tile, subgroup);
        let errors = [pollster::block_on(inner.pop()), pollster::block_on(outer.pop())];
        self.elements = elements.filter(|_| errors.iter().all(Option::is_none));
        self.elements
    }

    /// Kernels compiled so far.
    pub(super) fn count(&self) -> u64 {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// The kernel, compiled at its first use.
    pub(super) fn get(&self, device: &wgpu::Device, kernel: Specialisation) -> Arc<Pipeline> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = compiled.get(&kernel) {
            return pipeline.clone();
        }
        let pipeline = Arc::new(self.compile(device, &kernel, compiled.len()));
        compiled.insert(kernel, pipeline.clone());
        pipeline
    }

    fn compile(&self, device: &wgpu::Device, kernel: &Specialisation, id: usize) -> Pipeline {
        let text = kernel.expand();
        let module = self.module(device, kernel, &text);
        let interface = template::interface(&text);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = interface
            .bindings
            .iter()
            .map(|&(binding, read_only)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(kernel.name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: interface.immediates,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                zero_initialize_workgroup_memory: false,
            },
            cache: self.cache.as_ref(),
        });
        Pipeline { pipeline, layout, id }
    }

    /// A kernel's text as the device takes it.
    ///
    /// Kernels with matrices hand workgroup memory on within a subgroup: the translation to SPIR-V that wgpu makes does
    /// not order it.
    fn module(&self, device: &wgpu::Device, kernel: &Specialisation, text: &str) -> wgpu::ShaderModule {
        if let Some(barrier) = self.spirv
            && text.contains("coop_mat")
        {
            let translation = spirv::translate(text, barrier, self.elements.as_ref())
                .unwrap_or_else(|why| panic!("kernel {}: {why}", kernel.name));
            let limit = device.limits().max_compute_workgroup_storage_size;
            let bytes = translation.workgroup_memory;
            assert!(bytes <= limit, "kernel {}: {bytes} bytes of workgroup memory, not {limit}", kernel.name);
            let [x, y, z] = translation.workgroup_size;
            let entry = wgpu::PassthroughShaderEntryPoint { name: "main".into(), workgroup_size: (x, y, z) };
            let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                label: Some(kernel.name),
                entry_points: vec![entry].into(),
                spirv: Some(translation.words.into()),
                ..Default::default()
            };
            // SAFETY: the words are the compiler's own, of a text that it has validated, and as below.
            return unsafe { device.create_shader_module_passthrough(descriptor) };
        }
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(kernel.name),
            source: wgpu::ShaderSource::Wgsl(text.into()),
        };
        // SAFETY: kernels index within what the host has checked before each launch, and their loops end.
        unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
    }

    /// The bind group of a kernel and its buffers.
    pub(super) fn bind_group(
        &self,
        device: &wgpu::Device,
        kernel: &Pipeline,
        buffers: &[&GpuBuffer],
    ) -> wgpu::BindGroup {
        let key = (kernel.id, buffers.iter().map(|buffer| buffer.raw().clone()).collect::<Vec<_>>());
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.get(&key) {
            return group.clone();
        }
        // Bind groups keep their buffers alive: a cache without bound would be a leak.
        if groups.len() >= 4096 {
            groups.clear();
        }
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0u32..)
            .zip(&key.1)
            .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
            .collect();
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &kernel.layout,
            entries: &entries,
        });
        groups.insert(key, group.clone());
        group
    }

    /// Drops the bind groups that hold a buffer.
    pub(super) fn forget(&self, buffer: &wgpu::Buffer) {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|(_, buffers), _| !buffers.contains(buffer));
    }
}

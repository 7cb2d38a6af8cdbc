//! GPUs through wgpu: Metal, Vulkan and DX12. Kernels are WGSL templates; operations are recorded and run in order.

mod attention;
mod ceilings;
mod context;
mod elements;
mod linear;
mod matrix;
mod memory;
mod pages;
mod pipeline;
mod rows;
mod sample;
mod spirv;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use self::attention::Pages;
use self::context::{Context, Matrices, Span};
use self::linear::{Input, Onto};
use self::memory::{GpuBuffer, Scratch, gpu};
use crate::dispatch::DispatchPolicy;
use crate::plan::{Tiling, partition};
use crate::{
    AttentionParams, AttentionPlan, BatchLayout, Ceilings, Counts, DType, Device, DeviceCaps, DeviceSummary,
    Draw, Error, HeadSpan, HostTensor, Kv, KvCache, KvCacheConfig, KvLayer, Linear, LogitChange, Logprobs,
    LogprobsOf, NormedRows, NotFinite, PageLayout, Result, RotaryHeads, Sampled, Tensor, TokenView, checks,
};

/// A GPU.
pub struct GpuDevice {
    caps: DeviceCaps,
    policy: DispatchPolicy,
    context: Arc<Context>,
    /// Partial states of attention.
    scratch: Scratch,
    /// Inputs of linear layers as matrix units take them.
    halves: Scratch,
}

impl GpuDevice {
    /// The adapters of this machine, real ones first.
    pub fn adapters() -> Vec<DeviceSummary> {
        let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
            let info = adapter.get_info();
            DeviceSummary {
                name: format!("gpu:{index}"),
                description: describe(&info),
                software: context::is_software(&info),
            }
        };
        context::adapters().iter().enumerate().map(describe).collect()
    }

    /// Opens an adapter by its place in [`Self::adapters`].
    ///
    /// # Errors
    /// [`Error::Device`] if there is none or it cannot run the kernels.
    pub fn new(index: usize) -> Result<Self> {
        Self::open(index, Matrices::Elements)
    }

    /// The same without its matrix units, as on adapters that have none.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_matrices(index: usize) -> Result<Self> {
        Self::open(index, Matrices::Unused)
    }

    /// The same with matrix units whose elements cannot be got at, as through Metal.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without_elements(index: usize) -> Result<Self> {
        Self::open(index, Matrices::Whole)
    }

    fn open(index: usize, matrices: Matrices) -> Result<Self> {
        let name = format!("gpu:{index}");
        let adapters = context::adapters();
        let Some(adapter) = adapters.get(index) else {
            let why = match adapters.len() {
                0 => "this machine has no GPU adapter; use cpu".to_owned(),
                1 => "this machine has one GPU adapter, gpu:0".to_owned(),
                n => format!("this machine has {n} GPU adapters, gpu:0 to gpu:{}", n - 1),
            };
            return Err(Error::Device { device: name, why });
        };
        let context = Arc::new(Context::open(&name, adapter, matrices)?);
        let rounds_to = context.abilities.matrix_tile.map(|_| DType::F16);
        let (description, memory) = (describe(&context.info), memory_guess(&context));
        let software = context::is_software(&context.info);
        let caps = DeviceCaps { name, description, memory, rounds_to, software };
        let policy = DispatchPolicy::new(attention::KERNELS, attention::RULES);
        Ok(Self { caps, policy, context, scratch: Scratch::default(), halves: Scratch::default() })
    }

    /// Rows and columns of the tiles of its matrix units, where they are used.
    pub fn matrix_tile(&self) -> Option<u32> {
        self.context.abilities.matrix_tile
    }

    /// Whether kernels compute with the elements of matrices.
    pub fn computes_with_elements(&self) -> bool {
        self.context.abilities.elements.is_some()
    }

    fn tensor(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
        let what = || format!("a tensor {shape:?}");
        let bytes = bytes.ok_or_else(|| Error::OutOfMemory { what: what(), bytes: usize::MAX })?;
        Ok(Tensor::from_buffer(shape, dtype, Box::new(GpuBuffer::new(&self.context, what, bytes as u64)?)))
    }

    /// Keys or values of a layer, in as many buffers as the device needs to see them.
    fn pages(&self, config: &KvCacheConfig, dim: usize) -> Result<Tensor> {
        let dtype = pages::stored(&self.context.abilities, config.dtype);
        let bytes = |dim: usize| config.num_pages.saturating_mul(config.page_size * dim * dtype.size());
        let head = bytes(dim);
        // Keys and values are cut at the same heads.
        let widest = bytes(config.head_dim.max(config.value_dim)).max(1);
        let together = (self.context.abilities.binding as usize / widest).min(config.num_kv_heads);
        let what = || format!("pages of {} keys or values per head", config.num_pages * config.page_size);
        if together == 0 {
            return Err(Error::OutOfMemory { what: what(), bytes: head });
        }
        let mut parts = Vec::new();
        for first in (0..config.num_kv_heads).step_by(together) {
            let heads = first..config.num_kv_heads.min(first + together);
            let buffer = GpuBuffer::new(&self.context, what, (head * heads.len()) as u64)?;
            self.context.clear(&buffer)?;
            parts.push((heads, buffer));
        }
        let shape = [config.num_pages * config.num_kv_heads, config.page_size * dim];
        Ok(Tensor::from_buffer(&shape, dtype, Box::new(Pages { parts })))
    }
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {})", info.name, info.backend, info.driver_info)
}

/// wgpu does not say how much memory there is: what a tensor can have, several times over.
fn memory_guess(context: &Context) -> usize {
    (context.abilities.binding as usize).saturating_mul(4)
}

impl Device for GpuDevice {
    fn caps(&self) -> &DeviceCaps {
        &self.caps
    }

    fn policy(&self) -> &DispatchPolicy {
        &self.policy
    }

    fn ceilings(&self) -> Result<Ceilings> {
        ceilings::measure(&self.context)
    }

    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let tensor = self.tensor(shape, dtype)?;
        self.context.clear(gpu(&tensor)?)?;
        Ok(tensor)
    }

    fn upload(&self, host: HostTensor<'_>) -> Result<Tensor> {
        let tensor = self.tensor(host.shape, host.dtype)?;
        self.fill(&tensor, host)?;
        Ok(tensor)
    }

    fn write(&self, host: HostTensor<'_>, tensor: &mut Tensor) -> Result<()> {
        let rows = checks::write(&host, tensor)?;
        tensor.set_rows(rows)?;
        self.fill(tensor, host)
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let len = (tensor.len() * tensor.dtype().size()) as u64;
        let span = |buffer, len| Span { buffer, start: 0, len };
        let spans = match Pages::of(tensor) {
            Err(_) => vec![span(gpu(tensor)?, len)],
            Ok(pages) => {
                let heads = pages.parts.iter().map(|(heads, _)| heads.len() as u64).sum::<u64>().max(1);
                pages.parts.iter().map(|(own, buffer)| span(buffer, len / heads * own.len() as u64)).collect()
            }
        };
        let mut bytes = Vec::new();
        self.context.read(&spans, &mut bytes)?;
        Ok(match tensor.dtype() {
            DType::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_ne_bytes(*b)).collect(),
            DType::F16 => bytes.as_chunks().0.iter().map(|b| half::f16::from_ne_bytes(*b).to_f32()).collect(),
            DType::Bf16 => {
                bytes.as_chunks().0.iter().map(|b| half::bf16::from_ne_bytes(*b).to_f32()).collect()
            }
            DType::U32 => bytes.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b) as f32).collect(),
        })
    }

    fn alloc_kv(&self, config: &KvCacheConfig) -> Result<KvCache> {
        config.validate()?;
        let layers = (0..config.num_layers).map(|_| {
            let (keys, values) =
                (self.pages(config, config.head_dim)?, self.pages(config, config.value_dim)?);
            Ok(KvLayer { keys, values, config: *config })
        });
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, config: *config })
    }

    fn page_layout(&self, config: &KvCacheConfig) -> PageLayout {
        pages::layout(&self.caps.description, &self.context.abilities, config)
    }

    fn download_page(&self, kv: &KvCache, page: u32, bytes: &mut Vec<u8>) -> Result<()> {
        pages::download(&self.context, kv, &[page], bytes)
    }

    fn download_pages(&self, kv: &KvCache, pages: &[u32], bytes: &mut Vec<u8>) -> Result<()> {
        pages::download(&self.context, kv, pages, bytes)
    }

    fn upload_page(&self, kv: &mut KvCache, page: u32, bytes: &[u8]) -> Result<()> {
        pages::upload(&self.context, kv, page, bytes)
    }

    fn copy_pages(&self, kv: &mut KvCache, copies: &[(u32, u32)]) -> Result<()> {
        pages::copy(&self.context, kv, copies)
    }

    fn pack_linear(&self, parts: &[HostTensor<'_>], bias: Option<&[f32]>, dtype: DType) -> Result<Linear> {
        let mut linear = matrix::pack(&self.context, parts, bias, dtype)?;
        linear.bias = bias.map(|bias| self.upload(HostTensor::f32(&[bias.len()], bias)?)).transpose()?;
        Ok(linear)
    }

    fn plan_attention(
        &self,
        params: &AttentionParams,
        layout: &Arc<BatchLayout>,
        forced: Option<&str>,
    ) -> Result<AttentionPlan> {
        params.validate()?;
        let tiles = attention::tiles(&self.context.abilities, params, layout);
        // Joint items are cut to work groups, wherever that parts their sequences.
        let tiling = Tiling { rows: tiles[0].rows, join_heads: false, joint_rows: usize::MAX };
        let mut plan = partition(params, layout, &self.policy, forced, tiling)?;
        attention::reside(&self.context, &mut plan, tiles)?;
        Ok(plan)
    }

    fn append_kv(
        &self,
        plan: &AttentionPlan,
        keys: TokenView<'_>,
        values: TokenView<'_>,
        layer: &mut KvLayer,
    ) -> Result<()> {
        attention::append(&self.context, plan, keys, values, layer)
    }

    fn append_rotated(
        &self,
        plan: &AttentionPlan,
        x: &mut Tensor,
        heads: &RotaryHeads<'_>,
        layer: &mut KvLayer,
    ) -> Result<()> {
        checks::append_rotated(plan, x, heads, layer)?;
        self.check_positions(heads.table, heads.positions)?;
        attention::append_rotated(&self.context, plan, x, heads, layer)
    }

    fn attention(
        &self,
        plan: &AttentionPlan,
        q: TokenView<'_>,
        kv: Kv<'_>,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    ) -> Result<()> {
        let partial = self.scratch.lock(&self.context, plan.workspace as u64 * 4)?;
        attention::attention(&self.context, partial.buffer(), plan, (q, kv), (out, lse.as_deref()))
    }

    fn linear_input(&self, weights: DType, in_features: usize) -> DType {
        linear::input(&self.context.abilities, weights, in_features)
    }

    fn linear(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()> {
        linear::product(&self.context, &self.halves, weight, Input::Rows(x), (out, Onto::Zero))
    }

    fn linear_add(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()> {
        linear::product(&self.context, &self.halves, weight, Input::Rows(x), (out, Onto::Out))
    }

    fn embed(&self, table: &Linear, ids: &Tensor, out: &mut Tensor) -> Result<()> {
        checks::embed(table, ids, out)?;
        let largest = gpu(ids)?.largest.load(Ordering::Relaxed) as usize;
        if !ids.is_empty() && largest >= table.out_features {
            return Err(Error::shape("embed", format!("id {largest} of a table of {}", table.out_features)));
        }
        linear::embed(&self.context, table, ids, out)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()> {
        checks::rms_norm(x, weight, out)?;
        self.context.rms_norm(x, weight, eps, out)
    }

    fn rms_norm_heads(&self, x: &mut Tensor, span: HeadSpan, weight: &Tensor, eps: f32) -> Result<()> {
        checks::rms_norm_heads(x, span, weight)?;
        self.context.rms_norm_heads(x, span, weight, eps)
    }

    fn rope(&self, x: &mut Tensor, span: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()> {
        checks::rope(x, span, table, positions)?;
        self.check_positions(table, positions)?;
        self.context.rope(x, span, table, positions)
    }

    fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        checks::silu_mul(gate_up, out)?;
        self.context.silu_mul(gate_up, out)
    }

    fn linear_silu_mul(
        &self,
        weight: &Linear,
        x: &Tensor,
        gate_up: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        checks::linear(weight, x, gate_up)?;
        checks::silu_mul(gate_up, out)?;
        self.gated(weight, Input::Rows(x), gate_up, out)
    }

    fn norm_linear(
        &self,
        rows: &NormedRows<'_>,
        normed: &mut Tensor,
        weight: &Linear,
        out: &mut Tensor,
    ) -> Result<()> {
        checks::norm_linear(rows, normed, weight, out)?;
        let input = self.normed(rows, normed, weight)?;
        linear::product(&self.context, &self.halves, weight, input, (out, Onto::Zero))
    }

    fn norm_linear_silu_mul(
        &self,
        rows: &NormedRows<'_>,
        normed: &mut Tensor,
        weight: &Linear,
        gate_up: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        checks::norm_linear(rows, normed, weight, gate_up)?;
        checks::silu_mul(gate_up, out)?;
        self.gated(weight, self.normed(rows, normed, weight)?, gate_up, out)
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        checks::gather_rows(x, rows, out)?;
        let ids = GpuBuffer::to_write(&self.context, || "row numbers".to_owned(), rows.len() as u64 * 4)?;
        self.context.write(&ids, 0, bytemuck::cast_slice(rows))?;
        let dtype = rows::wgsl("gather_rows", x)?;
        self.context.gather((gpu(x)?, dtype), (None, None), (x.row_len(), 0, x.rows()), &ids, out)
    }

    fn adjust_logits(&self, logits: &mut Tensor, changes: &[LogitChange]) -> Result<()> {
        checks::adjust_logits(logits, changes)?;
        sample::adjust(&self.context, logits, changes)
    }

    fn mask_logits(&self, logits: &mut Tensor, rows: &[u32], allowed: &[u32]) -> Result<()> {
        checks::mask_logits(logits, rows, allowed)?;
        sample::mask(&self.context, logits, rows, allowed)
    }

    fn logprobs(&self, logits: &Tensor, asked: &[LogprobsOf]) -> Result<Vec<Result<Logprobs, NotFinite>>> {
        checks::logprobs(logits, asked)?;
        sample::logprobs(&self.context, logits, asked)
    }

    fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Result<Sampled, NotFinite>>> {
        checks::sample(logits, draws)?;
        sample::sample(&self.context, logits, draws)
    }

    fn sample_ids(&self, logits: &Tensor, draws: &[Draw], ids: &mut Tensor) -> Result<()> {
        checks::sample(logits, draws)?;
        checks::ids("sample_ids", ids)?;
        ids.set_rows(draws.len())?;
        sample::ids(&self.context, logits, draws, gpu(ids)?)
    }

    fn read_ids(&self, ids: &[&Tensor]) -> Result<Vec<Vec<u32>>> {
        sample::read_ids(&self.context, ids)
    }

    fn compiles_kernels(&self) -> bool {
        true
    }

    fn wait(&self) -> Result<()> {
        self.context.wait()
    }

    fn counts(&self) -> Option<Counts> {
        Some(self.context.counts())
    }
}

impl GpuDevice {
    /// Norms of rows as a product takes them: made by a launch of their own unless they are few.
    fn normed<'a>(
        &self,
        rows: &'a NormedRows<'a>,
        normed: &'a mut Tensor,
        weight: &Linear,
    ) -> Result<Input<'a>> {
        gpu(normed)?;
        if linear::norms(&self.context.abilities, weight, rows, normed) {
            return Ok(Input::Normed(rows));
        }
        self.rms_norm(rows.x, rows.weight, rows.eps, normed)?;
        Ok(Input::Rows(normed))
    }

    /// [`Device::linear_silu_mul`], whose arguments were checked.
    fn gated(&self, weight: &Linear, input: Input<'_>, gate_up: &mut Tensor, out: &mut Tensor) -> Result<()> {
        if linear::gated(&self.context, &self.halves, weight, input, out)? {
            return Ok(());
        }
        linear::product(&self.context, &self.halves, weight, input, (gate_up, Onto::Zero))?;
        self.silu_mul(gate_up, out)
    }

    /// Checks that a table of rotations has all positions.
    fn check_positions(&self, table: &Tensor, positions: &Tensor) -> Result<()> {
        let largest = gpu(positions)?.largest.load(Ordering::Relaxed) as usize;
        if !positions.is_empty() && largest >= table.rows() {
            return Err(Error::shape("rope", format!("position {largest} of a table of {}", table.rows())));
        }
        Ok(())
    }

    /// Copies host elements to the front of a tensor.
    fn fill(&self, tensor: &Tensor, host: HostTensor<'_>) -> Result<()> {
        let buffer = gpu(tensor)?;
        if host.dtype == DType::U32 {
            let numbers = host.bytes.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b));
            buffer.largest.store(numbers.max().unwrap_or(0), Ordering::Relaxed);
        }
        self.context.write(buffer, 0, host.bytes)
    }
}

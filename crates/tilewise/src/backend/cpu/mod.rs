//! The CPU: vector instructions where the machine has them, threads that spin between layers.

mod attention;
mod buffer;
mod ceilings;
mod gemm;
mod memory;
mod pages;
mod rows;
mod sample;
mod simd;
mod threads;
mod tile;

use std::sync::{Arc, Mutex, PoisonError};

use self::attention::Scratch;
use self::buffer::{HostBuffer, SharedMut, elements, elements_mut, f32s, f32s_mut};
use self::gemm::Onto;
use self::sample::Sampler;
use self::simd::{LANES, Level};
use self::threads::Pool;
use crate::checks;
use crate::dispatch::DispatchPolicy;
use crate::plan::{Tiling, partition};
use crate::{
    AttentionParams, AttentionPlan, BatchLayout, Ceilings, DType, Device, DeviceCaps, Draw, Error, HeadSpan,
    HostTensor, Kv, KvCache, KvCacheConfig, KvLayer, Linear, LogitChange, Logprobs, LogprobsOf, NotFinite,
    PageLayout, Result, Sampled, Tensor, TokenView,
};

/// Elements below which a row-wise operation stays on the calling thread.
const SERIAL: usize = 16 * 1024;

/// A CPU with its threads.
pub struct CpuDevice {
    caps: DeviceCaps,
    policy: DispatchPolicy,
    level: Level,
    pool: Pool,
    scratch: Vec<Mutex<Scratch>>,
    samplers: Vec<Mutex<Sampler>>,
    /// Partial states of one launch's rows.
    partial: Mutex<Vec<f32>>,
    packed: Mutex<Vec<f32>>,
}

impl CpuDevice {
    /// A device with the best instruction set of this machine; `threads` defaults to the number of cores.
    ///
    /// # Errors
    /// [`Error::Value`] for no or absurdly many threads, [`Error::Device`] if they cannot be started.
    pub fn new(threads: Option<usize>) -> Result<Self> {
        Self::with_level(threads, Level::available()[0])
    }

    /// The names of the instruction sets this machine has, best first.
    pub fn instruction_sets() -> Vec<&'static str> {
        Level::available().into_iter().map(Level::name).collect()
    }

    /// A device that uses a given one of [`Self::instruction_sets`].
    ///
    /// # Errors
    /// [`Error::Device`] if this machine does not have it, else as [`Self::new`].
    pub fn with_instruction_set(threads: Option<usize>, name: &str) -> Result<Self> {
        let level = Level::available().into_iter().find(|level| level.name() == name);
        let missing = || Error::Device { device: "cpu".to_owned(), why: format!("has no {name}") };
        Self::with_level(threads, level.ok_or_else(missing)?)
    }

    fn with_level(threads: Option<usize>, level: Level) -> Result<Self> {
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        if !(1..=1024).contains(&threads) {
            let got = threads.to_string();
            return Err(Error::Value { name: "threads", expected: "from 1 to 1024", got });
        }
        let failed =
            |error: std::io::Error| Error::Device { device: "cpu".to_owned(), why: error.to_string() };
        let pool = Pool::new(threads).map_err(failed)?;
        Ok(Self {
            caps: DeviceCaps {
                name: "cpu".to_owned(),
                description: format!("{}, {threads} threads", level.name()),
                memory: memory::available(),
                rounds_to: None,
                software: false,
            },
            policy: DispatchPolicy::new(attention::KERNELS, attention::RULES),
            level,
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
            samplers: (0..threads).map(|_| Mutex::default()).collect(),
            partial: Mutex::default(),
            packed: Mutex::default(),
            pool,
        })
    }

    fn product(&self, weight: &Linear, x: &Tensor, out: &mut Tensor, onto: Onto) -> Result<()> {
        let rows = x.rows();
        checks::linear(weight, x, out)?;
        let bias = weight.bias.as_ref().map(|bias| f32s("linear bias", bias)).transpose()?;
        let launch = gemm::Launch { level: self.level, pool: &self.pool, packed: &self.packed };
        let x = f32s("linear", x)?;
        if rows == 0 {
            return Ok(());
        }
        launch.linear(weight, bias, x, f32s_mut("linear", out)?, onto)
    }

    /// Calls `row(index, row)` for all rows, on all threads if there is much to do.
    fn for_rows(&self, out: &mut [f32], row_len: usize, work: usize, row: impl Fn(usize, &mut [f32]) + Sync) {
        if row_len == 0 {
            return;
        }
        if work < SERIAL {
            out.chunks_exact_mut(row_len).enumerate().for_each(|(index, out)| row(index, out));
            return;
        }
        let rows = out.len() / row_len;
        let out = SharedMut::new(out);
        self.pool.run(rows, &|_, index| {
            // SAFETY: every row belongs to one item.
            row(index, unsafe { out.get(index * row_len, row_len) });
        });
    }
}

impl CpuDevice {
    /// What `of` says of each row of logits, on all threads.
    fn sample_rows<Q: Sync, A: Clone + Send>(
        &self,
        rows: &[f32],
        len: usize,
        asked: &[Q],
        of: impl Fn(&mut Sampler, &[f32], &Q) -> Result<A, NotFinite> + Sync,
    ) -> Vec<Result<A, NotFinite>> {
        let mut answers = vec![Err(NotFinite); asked.len()];
        let out = SharedMut::new(&mut answers);
        self.pool.run(asked.len(), &|thread, row| {
            let mut sampler = self.samplers[thread].lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: every row belongs to one item.
            let answer = unsafe { out.get(row, 1) };
            answer[0] = of(&mut sampler, &rows[row * len..][..len], &asked[row]);
        });
        answers
    }
}

impl Device for CpuDevice {
    fn caps(&self) -> &DeviceCaps {
        &self.caps
    }

    fn policy(&self) -> &DispatchPolicy {
        &self.policy
    }

    fn ceilings(&self) -> Result<Ceilings> {
        ceilings::measure(self.level, &self.pool)
    }

    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let bytes = elements.and_then(|n| n.checked_mul(dtype.size()));
        let too_large = || Error::OutOfMemory { what: format!("a tensor {shape:?}"), bytes: usize::MAX };
        Ok(Tensor::from_buffer(shape, dtype, Box::new(HostBuffer::zeroed(bytes.ok_or_else(too_large)?)?)))
    }

    fn upload(&self, host: HostTensor<'_>) -> Result<Tensor> {
        let mut buffer = HostBuffer::zeroed(host.bytes.len())?;
        buffer.bytes_mut().copy_from_slice(host.bytes);
        Ok(Tensor::from_buffer(host.shape, host.dtype, Box::new(buffer)))
    }

    fn write(&self, host: HostTensor<'_>, tensor: &mut Tensor) -> Result<()> {
        let rows = checks::write(&host, tensor)?;
        tensor.set_rows(rows)?;
        match host.dtype.size() {
            2 => bytemuck::cast_slice_mut(elements_mut::<u16>(tensor)?).copy_from_slice(host.bytes),
            _ => bytemuck::cast_slice_mut(elements_mut::<u32>(tensor)?).copy_from_slice(host.bytes),
        }
        Ok(())
    }

    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(match tensor.dtype() {
            DType::F32 => elements::<f32>(tensor)?.to_vec(),
            DType::F16 => elements::<half::f16>(tensor)?.iter().map(|x| x.to_f32()).collect(),
            DType::Bf16 => elements::<half::bf16>(tensor)?.iter().map(|x| x.to_f32()).collect(),
            DType::U32 => elements::<u32>(tensor)?.iter().map(|&x| x as f32).collect(),
        })
    }

    fn alloc_kv(&self, config: &KvCacheConfig) -> Result<KvCache> {
        config.validate()?;
        let heads = config.num_pages * config.num_kv_heads;
        let layers = (0..config.num_layers).map(|_| {
            let keys = self.alloc(&[heads, config.page_size * config.head_dim], config.dtype)?;
            let row = config.value_dim.next_multiple_of(LANES);
            let values = self.alloc(&[heads, config.page_size * row], config.dtype)?;
            Ok(KvLayer { keys, values, config: *config })
        });
        Ok(KvCache { layers: layers.collect::<Result<_>>()?, config: *config })
    }

    fn page_layout(&self, config: &KvCacheConfig) -> PageLayout {
        pages::layout(config)
    }

    fn download_page(&self, kv: &KvCache, page: u32, bytes: &mut Vec<u8>) -> Result<()> {
        pages::download(kv, page, bytes)
    }

    fn upload_page(&self, kv: &mut KvCache, page: u32, bytes: &[u8]) -> Result<()> {
        pages::upload(kv, page, bytes)
    }

    fn copy_pages(&self, kv: &mut KvCache, copies: &[(u32, u32)]) -> Result<()> {
        pages::copy(kv, copies)
    }

    fn pack_linear(&self, parts: &[HostTensor<'_>], bias: Option<&[f32]>, dtype: DType) -> Result<Linear> {
        let mut linear = gemm::pack(&self.pool, parts, bias, dtype)?;
        linear.bias = bias.map(|bias| self.upload(HostTensor::f32(&[bias.len()], bias)?)).transpose()?;
        Ok(linear)
    }

    fn plan_attention(
        &self,
        params: &AttentionParams,
        layout: &Arc<BatchLayout>,
        forced: Option<&str>,
    ) -> Result<AttentionPlan> {
        let rows = attention::tile_rows(params.head_dim.max(params.value_dim));
        let tiling = Tiling { rows, join_heads: true, joint_rows: attention::JOINT_ROWS };
        partition(params, layout, &self.policy, forced, tiling)
    }

    fn append_kv(
        &self,
        plan: &AttentionPlan,
        keys: TokenView<'_>,
        values: TokenView<'_>,
        layer: &mut KvLayer,
    ) -> Result<()> {
        attention::append_kv(&self.pool, plan, keys, values, layer)
    }

    fn attention(
        &self,
        plan: &AttentionPlan,
        q: TokenView<'_>,
        kv: Kv<'_>,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    ) -> Result<()> {
        let (pool, scratch) = (&self.pool, &self.scratch);
        let launch = attention::Launch { level: self.level, pool, scratch, partial: &self.partial };
        launch.attention(plan, q, kv, out, lse)
    }

    fn linear(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()> {
        self.product(weight, x, out, Onto::Zero)
    }

    fn linear_add(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()> {
        self.product(weight, x, out, Onto::Out)
    }

    fn embed(&self, table: &Linear, ids: &Tensor, out: &mut Tensor) -> Result<()> {
        checks::embed(table, ids, out)?;
        let ids = elements::<u32>(ids)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= table.out_features) {
            return Err(Error::shape("embed", format!("id {id} of a table of {}", table.out_features)));
        }
        let width = table.in_features;
        for (out, &id) in f32s_mut("embed", out)?.chunks_exact_mut(width).zip(ids) {
            gemm::matrix_row(table, id as usize, out)?;
        }
        Ok(())
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()> {
        checks::rms_norm(x, weight, out)?;
        let len = x.row_len();
        let (work, x, weight) = (x.len(), f32s("rms_norm", x)?, f32s("rms_norm", weight)?);
        self.for_rows(f32s_mut("rms_norm", out)?, len, work, |row, out| {
            rows::norm_row(self.level, &x[row * len..(row + 1) * len], weight, eps, out);
        });
        Ok(())
    }

    fn rms_norm_heads(&self, x: &mut Tensor, span: HeadSpan, weight: &Tensor, eps: f32) -> Result<()> {
        checks::rms_norm_heads(x, span, weight)?;
        let weight = f32s("rms_norm_heads", weight)?;
        let (len, work) = (x.row_len(), x.rows() * span.num_heads * span.head_dim);
        self.for_rows(f32s_mut("rms_norm_heads", x)?, len, work, |_, row| {
            let heads = &mut row[span.offset..span.offset + span.num_heads * span.head_dim];
            for head in heads.chunks_exact_mut(span.head_dim) {
                rows::norm_row_in_place(self.level, head, weight, eps);
            }
        });
        Ok(())
    }

    fn rope(&self, x: &mut Tensor, span: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()> {
        checks::rope(x, span, table, positions)?;
        let rotary_dim = table.row_len();
        let (rows_in_table, positions) = (table.rows(), elements::<u32>(positions)?);
        if let Some(position) = positions.iter().find(|&&p| p as usize >= rows_in_table) {
            return Err(Error::shape("rope", format!("position {position} of a table of {rows_in_table}")));
        }
        let table = f32s("rope", table)?;
        let (len, work) = (x.row_len(), x.rows() * span.num_heads * span.head_dim);
        self.for_rows(f32s_mut("rope", x)?, len, work, |index, row| {
            let table = &table[positions[index] as usize * rotary_dim..][..rotary_dim];
            let heads = &mut row[span.offset..span.offset + span.num_heads * span.head_dim];
            for head in heads.chunks_exact_mut(span.head_dim) {
                self.level.run(rows::Rotate { head, table });
            }
        });
        Ok(())
    }

    fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<()> {
        checks::silu_mul(gate_up, out)?;
        let len = out.row_len();
        let (work, gate_up) = (gate_up.len(), f32s("silu_mul", gate_up)?);
        self.for_rows(f32s_mut("silu_mul", out)?, len, work, |row, out| {
            self.level.run(rows::SiluMul { gate_up: &gate_up[row * 2 * len..(row + 1) * 2 * len], out });
        });
        Ok(())
    }

    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()> {
        checks::gather_rows(x, rows, out)?;
        let len = x.row_len();
        let x = f32s("gather_rows", x)?;
        for (out, &row) in f32s_mut("gather_rows", out)?.chunks_exact_mut(len).zip(rows) {
            out.copy_from_slice(&x[row as usize * len..][..len]);
        }
        Ok(())
    }

    fn adjust_logits(&self, logits: &mut Tensor, changes: &[LogitChange]) -> Result<()> {
        checks::adjust_logits(logits, changes)?;
        let len = logits.row_len();
        let logits = f32s_mut("adjust_logits", logits)?;
        for change in changes {
            let logit = &mut logits[change.row as usize * len + change.token as usize];
            *logit = change.apply(*logit);
        }
        Ok(())
    }

    fn mask_logits(&self, logits: &mut Tensor, rows: &[u32], allowed: &[u32]) -> Result<()> {
        checks::mask_logits(logits, rows, allowed)?;
        let len = logits.row_len();
        let logits = f32s_mut("mask_logits", logits)?;
        for (&row, words) in rows.iter().zip(allowed.chunks_exact(len.div_ceil(32))) {
            sample::mask(&mut logits[row as usize * len..][..len], words);
        }
        Ok(())
    }

    fn logprobs(&self, logits: &Tensor, asked: &[LogprobsOf]) -> Result<Vec<Result<Logprobs, NotFinite>>> {
        checks::logprobs(logits, asked)?;
        let rows = f32s("logprobs", logits)?;
        Ok(self.sample_rows(rows, logits.row_len(), asked, Sampler::logprobs))
    }

    fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Result<Sampled, NotFinite>>> {
        checks::sample(logits, draws)?;
        let rows = f32s("sample", logits)?;
        Ok(self.sample_rows(rows, logits.row_len(), draws, Sampler::draw))
    }
}

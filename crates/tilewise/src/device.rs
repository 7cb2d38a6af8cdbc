//! What a backend can do.

use std::sync::Arc;

use crate::dispatch::DispatchPolicy;
use crate::{
    AttentionParams, AttentionPlan, BatchLayout, DType, DeviceBuffer, Draw, HostTensor, KvCache,
    KvCacheConfig, KvLayer, LogitChange, Logprobs, LogprobsOf, NotFinite, PageLayout, Result, Sampled,
    Tensor, TokenView, checks,
};

/// Facts about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceCaps {
    /// What it is called on command lines: `cpu`, `gpu:0`.
    pub name: String,
    /// What it is, for people and records: instruction set, threads.
    pub description: String,
    /// Bytes of memory that models and caches may use.
    pub memory: usize,
    /// What matrix units round queries, weights of softmax and inputs of linear layers to, where keys and weights are
    /// of 16 bits; `None` where all arithmetic is f32.
    pub rounds_to: Option<DType>,
    /// Whether it is a processor that plays a GPU.
    pub software: bool,
}

/// What a device does at best, in loops that do nothing else.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// f32 operations per second of fused multiply-adds (two each) between registers.
    pub flops: f64,
    /// Bytes per second read from memory.
    pub read_bytes: f64,
}

/// A matrix `[out_features, in_features]` in the layout that its device multiplies fastest.
pub struct Linear {
    /// Elements of an output row.
    pub out_features: usize,
    /// Elements of an input row.
    pub in_features: usize,
    /// Element type of the matrix.
    pub dtype: DType,
    /// Added to every output row, if present; `[out_features]`.
    pub bias: Option<Tensor>,
    /// The backend's memory.
    pub buffer: Box<dyn DeviceBuffer>,
}

impl std::fmt::Debug for Linear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linear({} [{}, {}])", self.dtype, self.out_features, self.in_features)
    }
}

/// Some heads within packed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSpan {
    /// Elements of a row before the first head.
    pub offset: usize,
    /// Number of heads.
    pub num_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl HeadSpan {
    /// These heads of every row.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows are too short.
    pub fn view(self, rows: &Tensor) -> Result<TokenView<'_>> {
        TokenView::columns(rows, self.offset, self.num_heads, self.head_dim)
    }
}

/// Where the keys and values of a launch are.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Kv<'a> {
    /// In the pages that the layout's page table names.
    Paged(&'a KvLayer),
    /// Token-major and contiguous per sequence, as dense or ragged views.
    Contiguous {
        /// `head_dim` wide.
        keys: TokenView<'a>,
        /// `value_dim` wide.
        values: TokenView<'a>,
    },
}

/// Heads of packed rows that become queries, keys and values of attention.
#[derive(Debug, Clone, Copy)]
pub struct RotaryHeads<'a> {
    /// The query heads.
    pub queries: HeadSpan,
    /// The key heads.
    pub keys: HeadSpan,
    /// The value heads.
    pub values: HeadSpan,
    /// Weights of the queries' and of the keys' norms, where heads are normed.
    pub norms: Option<(&'a Tensor, &'a Tensor)>,
    /// Of the norms.
    pub eps: f32,
    /// Cosines and sines, as [`Device::rope`] takes them.
    pub table: &'a Tensor,
    /// The row's positions, u32.
    pub positions: &'a Tensor,
}

/// Rows that a product takes normed.
#[derive(Debug, Clone, Copy)]
pub struct NormedRows<'a> {
    /// The rows.
    pub x: &'a Tensor,
    /// Of the norm.
    pub weight: &'a Tensor,
    /// Of the norm.
    pub eps: f32,
}

/// How much has been asked of a device that works behind a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Kernels launched.
    pub launches: u64,
    /// Command buffers submitted.
    pub submissions: u64,
    /// Results read back to the host.
    pub downloads: u64,
    /// Kernels compiled.
    pub kernels: u64,
}

/// A device that runs transformer layers.
///
/// Activations are f32, or what [`Device::linear_input`] says. Every operation validates its shapes and is done, or
/// enqueued in order, when it returns. Results are bitwise independent of what else is in the batch: an output row is a
/// function of its own input row (and its own keys), of the weights, and of nothing else.
pub trait Device: Send + Sync {
    /// Facts about it.
    fn caps(&self) -> &DeviceCaps;

    /// Its attention kernels and the rules that choose among them.
    fn policy(&self) -> &DispatchPolicy;

    /// Measures what it does at best. Takes a fraction of a second and some hundred MiB.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn ceilings(&self) -> Result<Ceilings>;

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn alloc(&self, shape: &[usize], dtype: DType) -> Result<Tensor>;

    /// Copies to the device.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn upload(&self, host: HostTensor<'_>) -> Result<Tensor>;

    /// Overwrites the first rows of a tensor and sets its number of rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows differ in length or type or do not fit.
    fn write(&self, host: HostTensor<'_>, tensor: &mut Tensor) -> Result<()>;

    /// Copies to the host, widened to f32. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    fn download(&self, tensor: &Tensor) -> Result<Vec<f32>>;

    /// Pages of keys and values for every layer.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Value`].
    fn alloc_kv(&self, config: &KvCacheConfig) -> Result<KvCache>;

    /// What [`Device::download_page`] gives of a cache of this shape.
    fn page_layout(&self, config: &KvCacheConfig) -> PageLayout;

    /// Replaces `bytes` by one page of every layer, keys and values, as [`Device::page_layout`] says. Waits for the
    /// device.
    ///
    /// # Errors
    /// [`Error::Shape`] for a page that does not exist, [`Error::Device`] if the device failed.
    fn download_page(&self, kv: &KvCache, page: u32, bytes: &mut Vec<u8>) -> Result<()>;

    /// Replaces `bytes` by pages, one after the other, each as by [`Device::download_page`]. Waits for the device once,
    /// where it has a queue.
    ///
    /// # Errors
    /// As [`Device::download_page`].
    fn download_pages(&self, kv: &KvCache, pages: &[u32], bytes: &mut Vec<u8>) -> Result<()> {
        bytes.clear();
        let mut one = Vec::new();
        for &page in pages {
            self.download_page(kv, page, &mut one)?;
            bytes.extend_from_slice(&one);
        }
        Ok(())
    }

    /// Overwrites one page of every layer with what [`Device::download_page`] gave, on a device with the same layout.
    ///
    /// # Errors
    /// [`Error::Shape`] for a page that does not exist and for bytes of another length; nothing is written then.
    fn upload_page(&self, kv: &mut KvCache, page: u32, bytes: &[u8]) -> Result<()>;

    /// Overwrites pages of every layer with others: each of `copies` is a source and a destination. A page may be the
    /// source of several, of one cache and on the device.
    ///
    /// # Errors
    /// [`Error::Shape`] for a page that does not exist, a destination named twice and one that is a source too; nothing
    /// is written then.
    fn copy_pages(&self, kv: &mut KvCache, copies: &[(u32, u32)]) -> Result<()>;

    /// Packs matrices `[out, in]` of the same width under each other, converted to `dtype`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::OutOfMemory`].
    fn pack_linear(&self, parts: &[HostTensor<'_>], bias: Option<&[f32]>, dtype: DType) -> Result<Linear>;

    /// Plans attention over a batch; `forced` names a kernel that then runs or fails.
    ///
    /// # Errors
    /// [`Error::Value`], [`Error::Unsupported`].
    fn plan_attention(
        &self,
        params: &AttentionParams,
        layout: &Arc<BatchLayout>,
        forced: Option<&str>,
    ) -> Result<AttentionPlan>;

    /// Writes the new tokens' keys and values, `[tokens, num_kv_heads, dim]`, into their slots of the page table.
    ///
    /// # Errors
    /// [`Error::Shape`], also for a page that does not exist; nothing is written then.
    fn append_kv(
        &self,
        plan: &AttentionPlan,
        keys: TokenView<'_>,
        values: TokenView<'_>,
        layer: &mut KvLayer,
    ) -> Result<()>;

    /// What comes between the projections of a layer and its attention: norms of query and key heads, their
    /// rotation, and [`Device::append_kv`]. Queries stay in `x`; what the other heads hold afterwards is undefined.
    ///
    /// # Errors
    /// As the three operations. The pages are as they were then.
    fn append_rotated(
        &self,
        plan: &AttentionPlan,
        x: &mut Tensor,
        heads: &RotaryHeads<'_>,
        layer: &mut KvLayer,
    ) -> Result<()> {
        checks::append_rotated(plan, x, heads, layer)?;
        if let Some((queries, keys)) = heads.norms {
            self.rms_norm_heads(x, heads.queries, queries, heads.eps)?;
            self.rms_norm_heads(x, heads.keys, keys, heads.eps)?;
        }
        self.rope(x, heads.queries, heads.table, heads.positions)?;
        self.rope(x, heads.keys, heads.table, heads.positions)?;
        self.append_kv(plan, heads.keys.view(x)?, heads.values.view(x)?, layer)
    }

    /// Attention of `q` over `kv`.
    ///
    /// `out` is `[total_tokens, num_qo_heads * value_dim]` (two or three axes), or `[batch, num_qo_heads, tokens,
    /// value_dim]`; `lse`, the natural-log sum of exponentials, `[total_tokens, num_qo_heads]` or `[batch,
    /// num_qo_heads, tokens]`.
    ///
    /// # Errors
    /// [`Error::Shape`], also for a page that does not exist; nothing is read then.
    fn attention(
        &self,
        plan: &AttentionPlan,
        q: TokenView<'_>,
        kv: Kv<'_>,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    ) -> Result<()>;

    /// The type that [`Device::linear`] rounds inputs of `in_features` to, for weights of a type: an input that is
    /// of it already is not rounded again. Activations are f32 unless this says less.
    fn linear_input(&self, _weights: DType, _in_features: usize) -> DType {
        DType::F32
    }

    /// `out = x W^T + bias`, `[rows, in] -> [rows, out]`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn linear(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()>;

    /// `out += x W^T + bias`: a linear layer with its residual.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn linear_add(&self, weight: &Linear, x: &Tensor, out: &mut Tensor) -> Result<()>;

    /// Rows `ids` (u32) of an embedding table.
    ///
    /// # Errors
    /// [`Error::Shape`], also for an id outside the table.
    fn embed(&self, table: &Linear, ids: &Tensor, out: &mut Tensor) -> Result<()>;

    /// `out = x / sqrt(mean(x^2) + eps) * weight` per row (Zhang and Sennrich 2019).
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32, out: &mut Tensor) -> Result<()>;

    /// [`Device::rms_norm`] of each head of `span`, in place; `weight` is `[head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn rms_norm_heads(&self, x: &mut Tensor, span: HeadSpan, weight: &Tensor, eps: f32) -> Result<()>;

    /// Rotates each head of `span` in place by its row's position (Su et al. 2021), in half-split pairs
    /// `(i, i + rotary_dim / 2)`. `table` is `[positions, rotary_dim]`: cosines, then sines; `positions` is u32.
    ///
    /// # Errors
    /// [`Error::Shape`], also for a position outside the table.
    fn rope(&self, x: &mut Tensor, span: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()>;

    /// `silu(gate) * up` of rows `[gate, up]`: `[rows, 2 n] -> [rows, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn silu_mul(&self, gate_up: &Tensor, out: &mut Tensor) -> Result<()>;

    /// `out = silu(gate) * up`, where `[gate, up] = x W^T + bias`: [`Device::linear`] and [`Device::silu_mul`].
    /// `gate_up` has room for the product; what it holds afterwards is undefined.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn linear_silu_mul(
        &self,
        weight: &Linear,
        x: &Tensor,
        gate_up: &mut Tensor,
        out: &mut Tensor,
    ) -> Result<()> {
        checks::linear(weight, x, gate_up)?;
        checks::silu_mul(gate_up, out)?;
        self.linear(weight, x, gate_up)?;
        self.silu_mul(gate_up, out)
    }

    /// `out = norm(x) W^T + bias`: [`Device::rms_norm`] into `normed` and [`Device::linear`], with their bits. `normed`
    /// has room for the norms; what it holds afterwards is undefined.
    ///
    /// # Errors
    /// [`Error::Shape`].
    fn norm_linear(
        &self,
        rows: &NormedRows<'_>,
        normed: &mut Tensor,
        weight: &Linear,
        out: &mut Tensor,
    ) -> Result<()> {
        checks::norm_linear(rows, normed, weight, out)?;
        self.rms_norm(rows.x, rows.weight, rows.eps, normed)?;
        self.linear(weight, normed, out)
    }

    /// The same for [`Device::linear_silu_mul`].
    ///
    /// # Errors
    /// [`Error::Shape`].
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
        self.rms_norm(rows.x, rows.weight, rows.eps, normed)?;
        self.linear_silu_mul(weight, normed, gate_up, out)
    }

    /// `out[i] = x[rows[i]]`.
    ///
    /// # Errors
    /// [`Error::Shape`], also for a row outside `x`.
    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()>;

    /// Changes some logits, `[rows, vocabulary]`, each by [`LogitChange::apply`].
    ///
    /// # Errors
    /// [`Error::Shape`] for a place outside the logits, or if the changes do not ascend by row and then by token, each
    /// place once; nothing is changed then.
    fn adjust_logits(&self, logits: &mut Tensor, changes: &[LogitChange]) -> Result<()>;

    /// Makes `-inf` of the logits of `rows` whose bits are not set. `allowed` has `vocabulary / 32` words, rounded up, for
    /// each of the rows: token `t` is bit `t % 32` of word `t / 32`.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of words, or rows that do not ascend or are outside the logits; nothing is
    /// changed then.
    fn mask_logits(&self, logits: &mut Tensor, rows: &[u32], allowed: &[u32]) -> Result<()>;

    /// Logprobs at temperature 1 of each row of `logits`, `[asked.len(), vocabulary]`. A row that is not finite is an error
    /// of its own. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one question for each row or it asks for a token outside it, [`Error::Value`] for
    /// more than [`LogprobsOf::MOST`] tokens, [`Error::Device`] if the device failed.
    fn logprobs(&self, logits: &Tensor, asked: &[LogprobsOf]) -> Result<Vec<Result<Logprobs, NotFinite>>>;

    /// Draws a token from each row of `logits`, `[draws.len(), vocabulary]`. A row that is not finite is an error of
    /// its own. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not one draw for each row, [`Error::Device`] if the device failed.
    fn sample(&self, logits: &Tensor, draws: &[Draw]) -> Result<Vec<Result<Sampled, NotFinite>>>;

    /// The tokens of [`Device::sample`] as `ids`, u32, which are as many then: [`Device::embed`] takes them before the host
    /// knows them. Token 0 stands for a row that is not finite. Waits for nothing where the device has a queue.
    ///
    /// # Errors
    /// As [`Device::sample`], and [`Error::Shape`] if there is no room for them.
    fn sample_ids(&self, logits: &Tensor, draws: &[Draw], ids: &mut Tensor) -> Result<()> {
        let sampled = self.sample(logits, draws)?.into_iter();
        let tokens: Vec<u32> = sampled.map(|sampled| sampled.map_or(0, |sampled| sampled.id)).collect();
        self.write(HostTensor::u32(&[tokens.len()], &tokens)?, ids)
    }

    /// What [`Device::sample_ids`] left in each of `ids`. Waits for the device once, where it has a queue.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    fn read_ids(&self, ids: &[&Tensor]) -> Result<Vec<Vec<u32>>> {
        // Tokens are fewer than the integers that f32 holds.
        let read = |ids: &&Tensor| Ok(self.download(ids)?.into_iter().map(|id| id as u32).collect());
        ids.iter().map(read).collect()
    }

    /// Waits until everything asked for so far is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device failed.
    fn wait(&self) -> Result<()> {
        Ok(())
    }

    /// Whether a kernel is compiled when it is first launched, which takes as long as many launches.
    fn compiles_kernels(&self) -> bool {
        false
    }

    /// How much has been asked of it so far; `None` of a device without a queue.
    fn counts(&self) -> Option<Counts> {
        None
    }
}

//! What a backend can do.

use std::sync::Arc;

use crate::dispatch::DispatchPolicy;
use crate::{
    AttentionParams, AttentionPlan, BatchLayout, DType, DeviceBuffer, HostTensor, KvCache, KvCacheConfig,
    KvLayer, Result, Tensor, TokenView,
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

/// A device that runs transformer layers.
///
/// Activations are f32. Every operation validates its shapes and is done, or enqueued in order, when it
/// returns. Results are bitwise independent of what else is in the batch: an output row is a function of its own
/// input row (and its own keys), of the weights, and of nothing else.
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

    /// `out[i] = x[rows[i]]`.
    ///
    /// # Errors
    /// [`Error::Shape`], also for a row outside `x`.
    fn gather_rows(&self, x: &Tensor, rows: &[u32], out: &mut Tensor) -> Result<()>;
}

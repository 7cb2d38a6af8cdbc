//! The tensors between operations, allocated once.

use tilewise::{DType, Device, HostTensor, Tensor};

use crate::Result;
use crate::model::ModelConfig;
use crate::scheduler::BatchPlan;

/// The largest batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens of a step.
    pub max_batch_tokens: usize,
    /// Rows of logits of a step.
    pub max_logits_rows: usize,
}

/// One step's tensors, `[tokens, ..]` or `[logits rows, ..]`. They are f32 unless said; those that only products take
/// are of the type that the device rounds them to.
///
/// They are allocated for the largest batch; a step sets their rows and allocates nothing.
pub struct Activations {
    /// Token ids, u32.
    pub ids: Tensor,
    /// Positions, u32.
    pub positions: Tensor,
    /// The residual stream.
    pub hidden: Tensor,
    /// Room for the residual stream after a norm.
    pub normed: Tensor,
    /// Queries, keys and values of all heads.
    pub qkv: Tensor,
    /// Attention's output for all query heads.
    pub heads: Tensor,
    /// Gate and up projections.
    pub gate_up: Tensor,
    /// The product of both.
    pub inner: Tensor,
    /// Room for rows of the residual stream that logits are needed for, where others are between.
    pub last: Tensor,
    /// Room for attention's output of those rows.
    last_heads: Tensor,
    /// Room for those rows after the final norm.
    pub last_normed: Tensor,
    /// Logits.
    pub logits: Tensor,
    /// The rows that `hidden` and `heads` have since they changed places with `last` and `last_heads`.
    narrowed: Option<Vec<u32>>,
}

impl Activations {
    /// Tensors for batches up to `limits`, between weights of type `weights`.
    ///
    /// # Errors
    /// What allocation returns.
    pub fn new(device: &dyn Device, config: &ModelConfig, weights: DType, limits: Limits) -> Result<Self> {
        let q_width = config.num_qo_heads * config.head_dim;
        let qkv_width = q_width + 2 * config.num_kv_heads * config.head_dim;
        let tokens = |width: usize| device.alloc(&[limits.max_batch_tokens, width], DType::F32);
        let rows = |width: usize| device.alloc(&[limits.max_logits_rows, width], DType::F32);
        let input = |most: usize, width| device.alloc(&[most, width], device.linear_input(weights, width));
        Ok(Self {
            ids: device.alloc(&[limits.max_batch_tokens], DType::U32)?,
            positions: device.alloc(&[limits.max_batch_tokens], DType::U32)?,
            hidden: tokens(config.hidden_size)?,
            normed: input(limits.max_batch_tokens, config.hidden_size)?,
            qkv: tokens(qkv_width)?,
            heads: input(limits.max_batch_tokens, q_width)?,
            gate_up: tokens(2 * config.intermediate_size)?,
            inner: input(limits.max_batch_tokens, config.intermediate_size)?,
            last: rows(config.hidden_size)?,
            last_heads: input(limits.max_logits_rows, q_width)?,
            last_normed: input(limits.max_logits_rows, config.hidden_size)?,
            logits: rows(config.vocab_size)?,
            narrowed: None,
        })
    }

    /// Sets the rows for a batch and brings its ids and positions to the device.
    ///
    /// # Errors
    /// [`tilewise::Error::Shape`] if the batch is above the limits.
    pub fn begin(&mut self, device: &dyn Device, batch: &BatchPlan) -> Result<()> {
        if self.narrowed.take().is_some() {
            self.swap();
        }
        let tokens = batch.token_ids.len();
        device.write(HostTensor::u32(&[tokens], &batch.token_ids)?, &mut self.ids)?;
        device.write(HostTensor::u32(&[tokens], &batch.positions)?, &mut self.positions)?;
        for tensor in [
            &mut self.hidden,
            &mut self.normed,
            &mut self.qkv,
            &mut self.heads,
            &mut self.gate_up,
            &mut self.inner,
        ] {
            tensor.set_rows(tokens)?;
        }
        Ok(())
    }

    /// Goes on with some rows only, of the residual stream and of attention's output.
    ///
    /// # Errors
    /// [`tilewise::Error::Shape`] for more than the limits allow, and what gathering returns.
    pub fn narrow(&mut self, device: &dyn Device, rows: &[u32]) -> Result<()> {
        self.last.set_rows(rows.len())?;
        self.last_heads.set_rows(rows.len())?;
        device.gather_rows(&self.hidden, rows, &mut self.last)?;
        device.gather_rows(&self.heads, rows, &mut self.last_heads)?;
        self.swap();
        self.narrowed = Some(rows.to_vec());
        for tensor in [&mut self.normed, &mut self.gate_up, &mut self.inner] {
            tensor.set_rows(rows.len())?;
        }
        Ok(())
    }

    /// The rows of the batch that the residual stream was narrowed to.
    pub fn narrowed(&self) -> Option<&[u32]> {
        self.narrowed.as_deref()
    }

    fn swap(&mut self) {
        std::mem::swap(&mut self.hidden, &mut self.last);
        std::mem::swap(&mut self.heads, &mut self.last_heads);
    }

    /// Sets the rows of logits.
    ///
    /// # Errors
    /// [`tilewise::Error::Shape`] for more than the limits allow.
    pub fn begin_logits(&mut self, rows: usize) -> Result<()> {
        for tensor in [&mut self.last, &mut self.last_normed, &mut self.logits] {
            tensor.set_rows(rows)?;
        }
        Ok(())
    }
}

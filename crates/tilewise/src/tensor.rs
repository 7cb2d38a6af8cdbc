//! Tensors that live on a device, and the views that operations take of them.

use std::any::Any;

use crate::{DType, Error, Result};

/// Memory owned by a device. Only the backend that made it can look inside.
pub trait DeviceBuffer: Any + Send + Sync {}

/// A dense, row-major array on a device.
///
/// The first axis is the row axis; [`Tensor::set_rows`] shortens it within the allocation, so that a step can
/// reuse one tensor for any batch.
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    row_capacity: usize,
    buffer: Box<dyn DeviceBuffer>,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

impl Tensor {
    /// Wraps a backend's buffer of at least `shape.iter().product()` elements.
    pub fn from_buffer(shape: &[usize], dtype: DType, buffer: Box<dyn DeviceBuffer>) -> Self {
        let row_capacity = shape.first().copied().unwrap_or(1);
        Self { shape: shape.to_vec(), dtype, row_capacity, buffer }
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The extent of the first axis.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements per row: the product of all axes but the first.
    pub fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Sets the extent of the first axis; the contents of the remaining rows stay.
    ///
    /// # Errors
    /// [`Error::Shape`] if `rows` exceeds what was allocated.
    pub fn set_rows(&mut self, rows: usize) -> Result<()> {
        if rows > self.row_capacity || self.shape.is_empty() {
            return Err(Error::shape(
                "set_rows",
                format!("{rows} rows in a tensor of {}", self.row_capacity),
            ));
        }
        self.shape[0] = rows;
        Ok(())
    }

    /// The backend's memory.
    pub fn buffer(&self) -> &dyn DeviceBuffer {
        &*self.buffer
    }

    /// The backend's memory, to write to.
    pub fn buffer_mut(&mut self) -> &mut dyn DeviceBuffer {
        &mut *self.buffer
    }
}

/// A borrowed array in host memory, row-major, in native byte order.
#[derive(Debug, Clone, Copy)]
pub struct HostTensor<'a> {
    /// The extents, outermost first.
    pub shape: &'a [usize],
    /// The element type.
    pub dtype: DType,
    /// `shape.product() * dtype.size()` bytes; need not be aligned.
    pub bytes: &'a [u8],
}

impl<'a> HostTensor<'a> {
    /// Checks that the bytes fill the shape.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not.
    pub fn new(shape: &'a [usize], dtype: DType, bytes: &'a [u8]) -> Result<Self> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        match elements.and_then(|n| n.checked_mul(dtype.size())) {
            Some(want) if want == bytes.len() => Ok(Self { shape, dtype, bytes }),
            _ => Err(Error::shape("host tensor", format!("{} bytes for {shape:?} of {dtype}", bytes.len()))),
        }
    }

    /// The extent of the first axis.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// A view of f32 values.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is not the shape's.
    pub fn f32(shape: &'a [usize], values: &'a [f32]) -> Result<Self> {
        Self::new(shape, DType::F32, bytemuck::cast_slice(values))
    }

    /// A view of u32 values.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is not the shape's.
    pub fn u32(shape: &'a [usize], values: &'a [u32]) -> Result<Self> {
        Self::new(shape, DType::U32, bytemuck::cast_slice(values))
    }
}

/// Where each token's heads stand in a tensor: the last axis is contiguous, all others are strided.
///
/// The vector of head `h` of token `t` of sequence `b` starts at
/// `offset + start(b) + t * token_stride + h * head_stride`, where `start(b)` is `b * batch_stride` in a dense
/// view and `indptr[b] * token_stride` in a ragged one.
#[derive(Debug, Clone, Copy)]
pub struct TokenView<'a> {
    /// The storage.
    pub tensor: &'a Tensor,
    /// Number of heads.
    pub num_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
    /// Elements before the first vector.
    pub offset: usize,
    /// Elements between sequences of a dense batch; `None` for ragged tokens, which follow each other.
    pub batch_stride: Option<usize>,
    /// Elements between tokens.
    pub token_stride: usize,
    /// Elements between heads.
    pub head_stride: usize,
}

impl<'a> TokenView<'a> {
    /// `[total_tokens, num_heads, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor does not have three axes.
    pub fn ragged(tensor: &'a Tensor) -> Result<Self> {
        let &[_, num_heads, head_dim] = tensor.shape() else {
            return Err(Error::shape("ragged view", format!("needs 3 axes, got {:?}", tensor.shape())));
        };
        let token_stride = num_heads * head_dim;
        let (offset, batch_stride) = (0, None);
        Ok(Self { tensor, num_heads, head_dim, offset, batch_stride, token_stride, head_stride: head_dim })
    }

    /// Some heads of packed rows `[total_tokens, row_len]`: `num_heads` vectors from element `offset` of each row.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows are too short.
    pub fn columns(tensor: &'a Tensor, offset: usize, num_heads: usize, head_dim: usize) -> Result<Self> {
        let token_stride = tensor.row_len();
        if offset + num_heads * head_dim > token_stride {
            return Err(Error::shape("column view", format!("rows of {token_stride} are too short")));
        }
        Ok(Self {
            tensor,
            num_heads,
            head_dim,
            offset,
            batch_stride: None,
            token_stride,
            head_stride: head_dim,
        })
    }

    /// `[batch, num_heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tensor does not have four axes.
    pub fn dense(tensor: &'a Tensor) -> Result<Self> {
        let &[_, num_heads, tokens, head_dim] = tensor.shape() else {
            return Err(Error::shape("dense view", format!("needs 4 axes, got {:?}", tensor.shape())));
        };
        let head_stride = tokens * head_dim;
        let batch_stride = Some(num_heads * head_stride);
        Ok(Self { tensor, num_heads, head_dim, offset: 0, batch_stride, token_stride: head_dim, head_stride })
    }

    /// Where sequence `sequence`, whose first ragged token is `first_token`, starts.
    pub(crate) fn start(&self, sequence: usize, first_token: usize) -> usize {
        self.offset + self.batch_stride.map_or(first_token * self.token_stride, |stride| sequence * stride)
    }

    /// The least number of elements the tensor must have for the sequences of `indptr`; more than any tensor has
    /// where the strides lead beyond the address space.
    pub(crate) fn extent(&self, indptr: &[u32]) -> usize {
        let last_head = self.num_heads.saturating_sub(1).saturating_mul(self.head_stride);
        let mut extent = 0;
        for (sequence, ends) in indptr.windows(2).enumerate() {
            let tokens = (ends[1] - ends[0]) as usize;
            if tokens > 0 {
                let start = self
                    .batch_stride
                    .map_or((ends[0] as usize).saturating_mul(self.token_stride), |stride| {
                        sequence.saturating_mul(stride)
                    });
                let last = (tokens - 1).saturating_mul(self.token_stride).saturating_add(last_head);
                let end =
                    self.offset.saturating_add(start).saturating_add(last).saturating_add(self.head_dim);
                extent = extent.max(end);
            }
        }
        extent
    }
}

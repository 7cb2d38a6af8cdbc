//! The paged key-value cache of a model.

use crate::{DType, Error, Result, Tensor};

/// The shape of a paged cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvCacheConfig {
    /// Layers, each with pages of its own under the same page numbers.
    pub num_layers: usize,
    /// Pages per layer.
    pub num_pages: usize,
    /// Tokens per page: 16, 32, 64 or 128.
    pub page_size: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a key vector.
    pub head_dim: usize,
    /// Elements of a value vector.
    pub value_dim: usize,
    /// Element type of keys and values.
    pub dtype: DType,
}

impl KvCacheConfig {
    /// Bytes that one page takes over all layers (value rows are padded to 16 elements).
    pub fn page_bytes(&self) -> usize {
        let row = self.head_dim + self.value_dim.next_multiple_of(16);
        self.num_layers * self.num_kv_heads * self.page_size * row * self.dtype.size()
    }

    /// Checks that every value means something.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first that does not.
    pub fn validate(&self) -> Result<()> {
        if ![16, 32, 64, 128].contains(&self.page_size) {
            let got = self.page_size.to_string();
            return Err(Error::Value { name: "page_size", expected: "16, 32, 64 or 128", got });
        }
        if self.dtype == DType::U32 {
            let got = self.dtype.to_string();
            return Err(Error::Value { name: "KV dtype", expected: "a floating-point type", got });
        }
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim)] {
            if dim == 0 || dim > 512 || !dim.is_multiple_of(8) {
                return Err(Error::Value {
                    name,
                    expected: "a multiple of 8 from 8 to 512",
                    got: dim.to_string(),
                });
            }
        }
        if self.num_kv_heads == 0 || self.num_kv_heads > 4096 {
            let got = self.num_kv_heads.to_string();
            return Err(Error::Value { name: "num_kv_heads", expected: "from 1 to 4096", got });
        }
        if self.num_pages > u32::MAX as usize {
            let got = self.num_pages.to_string();
            return Err(Error::Value { name: "num_pages", expected: "below 2^32", got });
        }
        Ok(())
    }
}

/// What the bytes of one page are, over all layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageLayout {
    /// Names the order of the elements and, on a GPU, what computed them, adapter and driver: pages are only read where
    /// it is the same.
    pub name: String,
    /// Element type as stored, which may be another than the cache's.
    pub dtype: DType,
    /// Keys and values of all layers.
    pub bytes: usize,
}

/// One layer's pages, in the layout that its device's kernels read fastest.
#[derive(Debug)]
pub struct KvLayer {
    /// The keys of all pages.
    pub keys: Tensor,
    /// The values of all pages.
    pub values: Tensor,
    /// The shape, shared by all layers.
    pub config: KvCacheConfig,
}

/// The pages of every layer.
#[derive(Debug)]
pub struct KvCache {
    /// In layer order.
    pub layers: Vec<KvLayer>,
    /// Their common shape.
    pub config: KvCacheConfig,
}

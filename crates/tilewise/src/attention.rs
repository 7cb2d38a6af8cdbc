//! What one attention layer computes: its arithmetic, without data.

use crate::{DType, Error, Result};

/// Which keys a query may see.
///
/// Query `i` of `n` stands at position `i + s - n` among `s` keys: the last query is aligned with the last key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mask {
    /// Every key.
    Full,
    /// Keys up to the query's own position: `j <= i + max(0, s - n)`.
    Causal,
    /// Keys at most `left` before and `right` after the query's position, `None` for an open side; with
    /// `causal`, no later key either.
    Window {
        /// Inclusive radius towards earlier keys.
        left: Option<u32>,
        /// Inclusive radius towards later keys.
        right: Option<u32>,
        /// Whether [`Mask::Causal`] applies too.
        causal: bool,
    },
}

impl Mask {
    /// The keys that query `query` of `num_queries` may see among `num_keys`, a possibly empty range.
    pub fn visible(&self, query: usize, num_queries: usize, num_keys: usize) -> std::ops::Range<usize> {
        let causal_end = (query + num_keys.saturating_sub(num_queries) + 1).min(num_keys);
        match *self {
            Self::Full => 0..num_keys,
            Self::Causal => 0..causal_end,
            Self::Window { left, right, causal } => {
                let position = query as i64 + num_keys as i64 - num_queries as i64;
                let clamp = |x: i64| x.clamp(0, num_keys as i64) as usize;
                let start = left.map_or(0, |left| clamp(position - i64::from(left)));
                let mut end = right.map_or(num_keys, |right| clamp(position + i64::from(right) + 1));
                if causal {
                    end = end.min(causal_end);
                }
                start.min(end)..end
            }
        }
    }
}

/// The arithmetic of one attention layer.
///
/// Query head `h` reads KV head `h / (num_qo_heads / num_kv_heads)`. A row that may see no key is zeros with
/// `lse = -inf`. Scores accumulate in f32, whatever the dtypes.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AttentionParams {
    /// Query (and output) heads.
    pub num_qo_heads: usize,
    /// Key and value heads; divides `num_qo_heads`.
    pub num_kv_heads: usize,
    /// Elements of a query and a key vector; a multiple of 8, at most 512.
    pub head_dim: usize,
    /// Elements of a value and an output vector; a multiple of 8, at most 512.
    pub value_dim: usize,
    /// Element type of the queries.
    pub q_dtype: DType,
    /// Element type of the keys and values.
    pub kv_dtype: DType,
    /// Which keys a query may see.
    pub mask: Mask,
    /// Factor on each score; `1 / sqrt(head_dim)` unless changed.
    pub sm_scale: f32,
}

impl AttentionParams {
    /// f32, causal attention with the default scale.
    pub fn new(num_qo_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            num_qo_heads,
            num_kv_heads,
            head_dim,
            value_dim: head_dim,
            q_dtype: DType::F32,
            kv_dtype: DType::F32,
            mask: Mask::Causal,
            sm_scale: 1.0 / (head_dim as f32).sqrt(),
        }
    }

    /// The same with another mask.
    #[must_use]
    pub fn mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// The same with other element types of queries and of keys and values.
    #[must_use]
    pub fn dtypes(mut self, q_dtype: DType, kv_dtype: DType) -> Self {
        (self.q_dtype, self.kv_dtype) = (q_dtype, kv_dtype);
        self
    }

    /// The same with another factor on the scores.
    #[must_use]
    pub fn sm_scale(mut self, sm_scale: f32) -> Self {
        self.sm_scale = sm_scale;
        self
    }

    /// The same with values of another width than keys.
    #[must_use]
    pub fn value_dim(mut self, value_dim: usize) -> Self {
        self.value_dim = value_dim;
        self
    }

    /// Query heads per KV head.
    pub fn group_size(&self) -> usize {
        self.num_qo_heads / self.num_kv_heads
    }

    /// Checks that every value means something.
    ///
    /// # Errors
    /// [`Error::Value`] that names the first parameter that does not.
    pub fn validate(&self) -> Result<()> {
        let value = |name, expected, got: String| Err(Error::Value { name, expected, got });
        if self.num_qo_heads == 0 || self.num_kv_heads == 0 {
            return value("heads", "at least 1", format!("{}/{}", self.num_qo_heads, self.num_kv_heads));
        }
        if !self.num_qo_heads.is_multiple_of(self.num_kv_heads) {
            let got = format!("{} over {}", self.num_qo_heads, self.num_kv_heads);
            return value("num_qo_heads", "a multiple of the number of KV heads", got);
        }
        for (name, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim)] {
            if dim == 0 || dim > 512 || !dim.is_multiple_of(8) {
                return value(name, "a multiple of 8 from 8 to 512", dim.to_string());
            }
        }
        for (name, dtype) in [("q_dtype", self.q_dtype), ("kv_dtype", self.kv_dtype)] {
            if dtype == DType::U32 {
                return value(name, "a floating-point type", dtype.to_string());
            }
        }
        if !(self.sm_scale.is_finite() && self.sm_scale > 0.0) {
            return value("sm_scale", "finite and positive", self.sm_scale.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_aligns_the_last_query_with_the_last_key() {
        assert_eq!(Mask::Causal.visible(0, 3, 5), 0..3);
        assert_eq!(Mask::Causal.visible(2, 3, 5), 0..5);
        assert_eq!(Mask::Causal.visible(0, 5, 3), 0..1);
        assert_eq!(Mask::Causal.visible(4, 5, 3), 0..3);
    }

    #[test]
    fn a_window_counts_both_radii_inclusively_and_composes_with_causal() {
        let window = |left, right, causal| Mask::Window { left, right, causal };
        assert_eq!(window(Some(2), Some(1), false).visible(3, 8, 8), 1..5);
        assert_eq!(window(Some(2), Some(1), true).visible(3, 8, 8), 1..4);
        assert_eq!(window(None, Some(0), false).visible(3, 8, 8), 0..4);
        assert_eq!(window(Some(0), None, false).visible(3, 8, 8), 3..8);
        assert!(window(Some(1), Some(0), false).visible(0, 5, 2).is_empty(), "position -3 sees nothing");
    }

    #[test]
    fn meaningless_parameters_are_refused_by_name() {
        for (params, name) in [
            (AttentionParams::new(3, 2, 64), "num_qo_heads"),
            (AttentionParams::new(2, 0, 64), "heads"),
            (AttentionParams::new(2, 2, 12), "head_dim"),
            (AttentionParams::new(2, 2, 64).value_dim(520), "value_dim"),
            (AttentionParams::new(2, 2, 64).sm_scale(f32::NAN), "sm_scale"),
            (AttentionParams::new(2, 2, 64).dtypes(DType::U32, DType::F32), "q_dtype"),
        ] {
            assert!(params.validate().unwrap_err().to_string().starts_with(name), "{params:?}");
        }
    }
}

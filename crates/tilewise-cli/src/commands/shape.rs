//! Shapes of attention, as `bench attention` and `explain` take them.

use serde::Serialize;
use tilewise::dispatch::Regime;
use tilewise::{AttentionParams, DType, Mask};

use crate::args::{Layout, ShapeArgs};
use crate::error::CliError;

/// One point of a sweep.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) q_len: usize,
    pub(crate) kv_len: usize,
    pub(crate) window: Option<u32>,
    pub(crate) layout: Layout,
    pub(crate) page_size: usize,
    /// First keys that all sequences have in the same pages.
    pub(crate) shared_prefix: usize,
    pub(crate) params: AttentionParams,
}

/// A shape in the words of the command line, for records.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ShapeRecord {
    batch: usize,
    qo_heads: usize,
    kv_heads: usize,
    q_len: usize,
    kv_len: usize,
    head_dim: usize,
    causal: bool,
    window: Option<u32>,
    dtype: &'static str,
    kv_dtype: &'static str,
    layout: &'static str,
    /// `None` where there are no pages.
    page_size: Option<usize>,
    shared_prefix: usize,
}

impl ShapeRecord {
    /// Queries and keys.
    pub(crate) fn lengths(&self) -> (usize, usize) {
        (self.q_len, self.kv_len)
    }

    /// All but the lengths, in a few words.
    pub(crate) fn sweep_title(&self) -> String {
        let Self { batch, qo_heads, kv_heads, head_dim, dtype, kv_dtype, layout, .. } = self;
        let decode = if self.q_len == 1 { ", one query" } else { "" };
        let causal = if self.causal { ", causal" } else { "" };
        let window = self.window.map(|window| format!(", window {window}")).unwrap_or_default();
        let kv = if dtype == kv_dtype { String::new() } else { format!(" over {kv_dtype}") };
        let pages = self.page_size.map(|size| format!(" by {size}")).unwrap_or_default();
        format!(
            "batch {batch}, {qo_heads} query heads over {kv_heads} KV heads of {head_dim}{decode}{causal}{window}, \
             {dtype}{kv}, {layout}{pages}"
        )
    }
}

/// Every combination, the first flag slowest.
///
/// # Errors
/// [`CliError::Usage`] for a shape that means nothing.
pub(crate) fn sweep(args: &ShapeArgs) -> Result<Vec<Shape>, CliError> {
    let windows: Vec<Option<u32>> = match args.window.as_slice() {
        [] => vec![None],
        windows => windows.iter().copied().map(Some).collect(),
    };
    let mut shapes = Vec::new();
    for (batch, qo_heads, kv_heads) in product3(&args.batch, &args.qo_heads, &args.kv_heads) {
        for &q_len in &args.q_len {
            let kv_lens = if args.kv_len.is_empty() { &[q_len][..] } else { &args.kv_len };
            for (kv_len, head_dim, window) in product3(kv_lens, &args.head_dim, &windows) {
                for (dtype, kv_dtype) in dtypes(args) {
                    let params = AttentionParams::new(qo_heads, kv_heads, head_dim)
                        .dtypes(dtype, kv_dtype)
                        .mask(mask(args.causal, window));
                    params.validate()?;
                    for (layout, page_size) in layouts(args) {
                        shapes.push(Shape {
                            batch,
                            q_len,
                            kv_len,
                            window,
                            layout,
                            page_size,
                            shared_prefix: 0,
                            params: params.clone(),
                        });
                    }
                }
            }
        }
    }
    shapes.iter().try_for_each(Shape::check)?;
    Ok(shapes)
}

fn product3<A: Copy, B: Copy, C: Copy>(a: &[A], b: &[B], c: &[C]) -> Vec<(A, B, C)> {
    let pairs = a.iter().flat_map(|&a| b.iter().map(move |&b| (a, b)));
    pairs.flat_map(|(a, b)| c.iter().map(move |&c| (a, b, c))).collect()
}

fn mask(causal: bool, window: Option<u32>) -> Mask {
    match window {
        None if causal => Mask::Causal,
        None => Mask::Full,
        Some(radius) => Mask::Window { left: Some(radius), right: (!causal).then_some(radius), causal },
    }
}

/// Pairs of query and KV types: a KV type of its own goes with every query type.
fn dtypes(args: &ShapeArgs) -> Vec<(DType, DType)> {
    let kv = |dtype| if args.kv_dtype.is_empty() { vec![dtype] } else { args.kv_dtype.clone() };
    args.dtype.iter().flat_map(|&dtype| kv(dtype).into_iter().map(move |kv| (dtype, kv))).collect()
}

/// Layouts with page sizes, which only pages have several of.
fn layouts(args: &ShapeArgs) -> Vec<(Layout, usize)> {
    let sizes =
        |layout| if layout == Layout::Paged { args.page_size.as_slice() } else { &args.page_size[..1] };
    args.layout.iter().flat_map(|&layout| sizes(layout).iter().map(move |&size| (layout, size))).collect()
}

impl Shape {
    pub(crate) fn check(&self) -> Result<(), CliError> {
        for (flag, value) in [("--batch", self.batch), ("--q-len", self.q_len), ("--kv-len", self.kv_len)] {
            if !(1..=1 << 24).contains(&value) {
                return Err(CliError::Usage(format!("{flag} must be from 1 to 16777216, got {value}")));
            }
        }
        if self.layout == Layout::Paged && self.q_len > self.kv_len {
            let (q, kv) = (self.q_len, self.kv_len);
            let why = format!(
                "--layout paged needs --q-len ({q}) at most --kv-len ({kv}): queries are the last tokens"
            );
            return Err(CliError::Usage(why));
        }
        let (shared, page_size) = (self.shared_prefix, self.page_size);
        let readable = shared.saturating_add(self.q_len) <= self.kv_len && shared.is_multiple_of(page_size);
        if shared > 0 && !(self.layout == Layout::Paged && readable) {
            let why = format!(
                "--shared-prefix {shared} needs --layout paged, whole pages of {page_size} tokens, and --q-len keys after it"
            );
            return Err(CliError::Usage(why));
        }
        Ok(())
    }

    /// What dispatch looks at.
    pub(crate) fn regime(&self) -> Regime {
        let paged = self.layout == Layout::Paged;
        Regime { num_queries: self.q_len, num_keys: self.kv_len, paged }
    }

    /// Floating-point operations: two per element of each visible query and key pair and of each value it
    /// weighs.
    ///
    /// A causal triangle counts as half its square, as is usual; a window is counted exactly.
    pub(crate) fn flops(&self) -> f64 {
        let (n, s) = (self.q_len as f64, self.kv_len as f64);
        let pairs = match self.params.mask {
            Mask::Full => n * s,
            Mask::Causal if s >= n => n * s - n * n / 2.0,
            Mask::Causal => n * s - s * s / 2.0,
            mask => {
                (0..self.q_len).map(|query| mask.visible(query, self.q_len, self.kv_len).len() as f64).sum()
            }
        };
        let dims = (self.params.head_dim + self.params.value_dim) as f64;
        2.0 * dims * pairs * (self.params.num_qo_heads * self.batch) as f64
    }

    /// Bytes of keys and values that the queries of each sequence see: shared ones count for each.
    pub(crate) fn kv_bytes(&self) -> f64 {
        let visible = |query| self.params.mask.visible(query, self.q_len, self.kv_len);
        let (first, last) = (visible(0), visible(self.q_len - 1));
        let keys = last.end.max(first.end) - first.start.min(last.start);
        let dims = self.params.head_dim + self.params.value_dim;
        (self.batch * self.params.num_kv_heads * keys * dims * self.params.kv_dtype.size()) as f64
    }

    pub(crate) fn record(&self) -> ShapeRecord {
        ShapeRecord {
            batch: self.batch,
            qo_heads: self.params.num_qo_heads,
            kv_heads: self.params.num_kv_heads,
            q_len: self.q_len,
            kv_len: self.kv_len,
            head_dim: self.params.head_dim,
            causal: self.is_causal(),
            window: self.window,
            dtype: self.params.q_dtype.name(),
            kv_dtype: self.params.kv_dtype.name(),
            layout: self.layout.name(),
            page_size: (self.layout == Layout::Paged).then_some(self.page_size),
            shared_prefix: self.shared_prefix,
        }
    }

    /// The shape in a few words.
    pub(crate) fn title(&self) -> String {
        let params = &self.params;
        let mask = match (self.is_causal(), self.window) {
            (true, None) => ", causal".to_owned(),
            (false, None) => String::new(),
            (true, Some(window)) => format!(", causal window {window}"),
            (false, Some(window)) => format!(", window {window}"),
        };
        let kv = if params.kv_dtype == params.q_dtype {
            String::new()
        } else {
            format!(" over {}", params.kv_dtype)
        };
        let layout = match self.layout {
            Layout::Paged if self.shared_prefix > 0 => {
                format!("paged by {}, the first {} shared", self.page_size, self.shared_prefix)
            }
            Layout::Paged => format!("paged by {}", self.page_size),
            layout => layout.name().to_owned(),
        };
        format!(
            "batch {}, {} query heads over {} KV heads of {}, {} queries over {} keys{mask}, {}{kv}, {layout}",
            self.batch,
            params.num_qo_heads,
            params.num_kv_heads,
            params.head_dim,
            self.q_len,
            self.kv_len,
            params.q_dtype,
        )
    }

    fn is_causal(&self) -> bool {
        matches!(self.params.mask, Mask::Causal | Mask::Window { causal: true, .. })
    }
}

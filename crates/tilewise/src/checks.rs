//! What every backend checks before it runs an operation.

use crate::device::{HeadSpan, NormedRows, RotaryHeads};
use crate::{
    AttentionPlan, DType, Draw, Error, HostTensor, Kv, KvCache, KvLayer, Linear, LogitChange, LogprobsOf,
    Result, Tensor, TokenView,
};

/// Checks that a view fits what a plan expects of it.
pub(crate) fn view(
    name: &'static str,
    view: &TokenView<'_>,
    heads_and_dim: (usize, usize),
    dtype: DType,
    indptr: &[u32],
) -> Result<()> {
    if (view.num_heads, view.head_dim) != heads_and_dim {
        let got = (view.num_heads, view.head_dim);
        return Err(Error::shape(name, format!("heads x dim {got:?}, planned {heads_and_dim:?}")));
    }
    if view.tensor.dtype() != dtype {
        return Err(Error::shape(name, format!("dtype {}, planned {dtype}", view.tensor.dtype())));
    }
    if view.extent(indptr) > view.tensor.len() {
        let why = format!("{:?} is too small for {} tokens", view.tensor, indptr.last().unwrap_or(&0));
        return Err(Error::shape(name, why));
    }
    Ok(())
}

/// Checks queries, keys and values against the plan, pages included; `value_row` is a value's elements in a page.
pub(crate) fn attention_inputs(
    plan: &AttentionPlan,
    q: &TokenView<'_>,
    kv: &Kv<'_>,
    value_row: usize,
) -> Result<()> {
    let params = &plan.params;
    view("q", q, (params.num_qo_heads, params.head_dim), params.q_dtype, plan.layout.qo_indptr())?;
    match kv {
        Kv::Paged(layer) => pages(plan, layer, value_row),
        Kv::Contiguous { keys, values } => {
            let indptr = plan.layout.kv_indptr();
            view("keys", keys, (params.num_kv_heads, params.head_dim), params.kv_dtype, indptr)?;
            view("values", values, (params.num_kv_heads, params.value_dim), params.kv_dtype, indptr)
        }
    }
}

/// Checks the outputs of attention against the plan. Returns whether they are dense.
pub(crate) fn attention_outputs(plan: &AttentionPlan, out: &Tensor, lse: Option<&Tensor>) -> Result<bool> {
    let (heads, dim) = (plan.params.num_qo_heads, plan.params.value_dim);
    let total = plan.layout.total_queries();
    let dense = out.shape().len() == 4;
    if dense {
        let tokens = out.shape()[2];
        let same = (0..plan.layout.num_sequences()).all(|b| plan.layout.num_queries(b) == tokens);
        if out.shape() != [plan.layout.num_sequences(), heads, tokens, dim] || !same {
            return Err(Error::shape("attention out", format!("{out:?} is not the batch's dense shape")));
        }
    } else if out.len() != total * heads * dim || out.rows() != total {
        return Err(Error::shape("attention out", format!("{out:?} for {total} tokens of {heads} x {dim}")));
    }
    if out.dtype() == DType::U32 {
        return Err(Error::unsupported("attention", "u32 outputs"));
    }
    // The same number of elements in the other order would be filled in silence.
    let sums = if dense { out.shape()[..3].to_vec() } else { vec![total, heads] };
    if let Some(lse) = lse
        && (lse.shape() != sums || lse.dtype() != DType::F32)
    {
        return Err(Error::shape("attention lse", format!("{lse:?} instead of {sums:?} of f32")));
    }
    Ok(dense)
}

/// Checks that a layer is what the plan expects and holds every page of its table.
pub(crate) fn pages(plan: &AttentionPlan, layer: &KvLayer, value_row: usize) -> Result<()> {
    let (params, config) = (&plan.params, &layer.config);
    let Some(table) = plan.layout.page_table() else {
        return Err(Error::shape("pages", "the batch was laid out without a page table"));
    };
    let planned = (params.num_kv_heads, params.head_dim, params.value_dim, params.kv_dtype, table.page_size);
    let got = (config.num_kv_heads, config.head_dim, config.value_dim, config.dtype, config.page_size);
    if planned != got {
        return Err(Error::shape("pages", format!("the cache is {got:?}, planned {planned:?}")));
    }
    // The fields of a cache are public: its tensors must be as large as its configuration says.
    let heads = config.num_pages.saturating_mul(config.num_kv_heads).saturating_mul(config.page_size);
    if layer.keys.len() < heads.saturating_mul(config.head_dim)
        || layer.values.len() < heads.saturating_mul(value_row)
    {
        return Err(Error::shape("pages", format!("{layer:?} is smaller than its configuration")));
    }
    match plan.layout.max_page() {
        Some(page) if page as usize >= config.num_pages => {
            Err(Error::shape("pages", format!("page {page} of a cache of {}", config.num_pages)))
        }
        _ => Ok(()),
    }
}

/// Checks that a page is in every layer of a cache whose tensors are as large as its configuration says; `value_row` is
/// a value's elements in a page.
pub(crate) fn page(op: &'static str, kv: &KvCache, page: u32, value_row: usize) -> Result<()> {
    let config = &kv.config;
    if page as usize >= config.num_pages {
        return Err(Error::shape(op, format!("page {page} of a cache of {}", config.num_pages)));
    }
    let slots = config.num_pages.saturating_mul(config.num_kv_heads).saturating_mul(config.page_size);
    let lens = (slots.saturating_mul(config.head_dim), slots.saturating_mul(value_row));
    let dtype = kv.layers.first().map(|layer| layer.keys.dtype());
    let fits = |layer: &KvLayer| {
        layer.config == *config
            && (layer.keys.len(), layer.values.len()) == lens
            && [layer.keys.dtype(), layer.values.dtype()].map(Some) == [dtype; 2]
    };
    match kv.layers.iter().find(|layer| !fits(layer)) {
        Some(layer) => Err(Error::shape(op, format!("{layer:?} is not of its cache's shape {config:?}"))),
        None if kv.layers.len() != config.num_layers => {
            Err(Error::shape(op, format!("{} layers of {}", kv.layers.len(), config.num_layers)))
        }
        None => Ok(()),
    }
}

/// Checks pages that are copied onto others, so that the order of the copies means nothing.
pub(crate) fn copies(op: &'static str, kv: &KvCache, copies: &[(u32, u32)], value_row: usize) -> Result<()> {
    let Some(largest) = copies.iter().map(|&(from, to)| from.max(to)).max() else { return Ok(()) };
    page(op, kv, largest, value_row)?;
    let mut destinations: Vec<u32> = copies.iter().map(|&(_, to)| to).collect();
    destinations.sort_unstable();
    if let Some(pair) = destinations.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::shape(op, format!("page {} is the destination of two copies", pair[0])));
    }
    match copies.iter().find(|(from, _)| destinations.binary_search(from).is_ok()) {
        Some((from, _)) => Err(Error::shape(op, format!("page {from} is a source and a destination"))),
        None => Ok(()),
    }
}

/// Checks the bytes of a page.
pub(crate) fn page_bytes(op: &'static str, got: usize, want: usize) -> Result<()> {
    if got != want {
        return Err(Error::shape(op, format!("{got} bytes for a page of {want}")));
    }
    Ok(())
}

/// Checks new keys and values, and the pages that they go to.
pub(crate) fn append(
    plan: &AttentionPlan,
    keys: &TokenView<'_>,
    values: &TokenView<'_>,
    layer: &KvLayer,
    value_row: usize,
) -> Result<()> {
    pages(plan, layer, value_row)?;
    let (params, indptr) = (&plan.params, plan.layout.qo_indptr());
    view("new keys", keys, (params.num_kv_heads, params.head_dim), DType::F32, indptr)?;
    view("new values", values, (params.num_kv_heads, params.value_dim), DType::F32, indptr)
}

/// Checks heads that are normed, rotated and stored.
pub(crate) fn append_rotated(
    plan: &AttentionPlan,
    x: &Tensor,
    heads: &RotaryHeads<'_>,
    layer: &KvLayer,
) -> Result<()> {
    let (q_norm, k_norm) = heads.norms.unzip();
    for (span, weight) in [(heads.queries, q_norm), (heads.keys, k_norm)] {
        if let Some(weight) = weight {
            rms_norm_heads(x, span, weight)?;
        }
        rope(x, span, heads.table, heads.positions)?;
    }
    if heads.queries.head_dim != heads.keys.head_dim || x.rows() != plan.layout.total_queries() {
        return Err(Error::shape("append_rotated", format!("{heads:?} of {x:?}")));
    }
    append(plan, &heads.keys.view(x)?, &heads.values.view(x)?, layer, plan.params.value_dim)
}

/// Checks a tensor to be overwritten by host rows; returns how many.
pub(crate) fn write(host: &HostTensor<'_>, tensor: &Tensor) -> Result<usize> {
    let row_len: usize = host.shape.iter().skip(1).product();
    if host.dtype != tensor.dtype() || row_len != tensor.row_len() || host.shape.is_empty() {
        return Err(Error::shape("write", format!("{:?} of {} into {tensor:?}", host.shape, host.dtype)));
    }
    Ok(host.shape[0])
}

/// Checks the shapes of `x W^T`.
pub(crate) fn linear(weight: &Linear, x: &Tensor, out: &Tensor) -> Result<()> {
    if x.row_len() != weight.in_features || out.row_len() != weight.out_features || out.rows() != x.rows() {
        return Err(Error::shape("linear", format!("{weight:?} of {x:?} into {out:?}")));
    }
    Ok(())
}

/// Checks the shapes of a product of normed rows.
pub(crate) fn norm_linear(
    rows: &NormedRows<'_>,
    normed: &Tensor,
    weight: &Linear,
    out: &Tensor,
) -> Result<()> {
    rms_norm(rows.x, rows.weight, normed)?;
    linear(weight, normed, out)
}

/// Checks the parts of a matrix and its bias; returns `(outputs, inputs)`.
pub(crate) fn matrix_parts(parts: &[HostTensor<'_>], bias: Option<&[f32]>) -> Result<(usize, usize)> {
    let Some(&[_, inputs]) = parts.first().map(|part| part.shape) else {
        return Err(Error::shape("pack_linear", "needs matrices [out, in]"));
    };
    let mut outputs = 0;
    for part in parts {
        match *part.shape {
            [out, width] if width == inputs && width > 0 && part.dtype != DType::U32 => outputs += out,
            _ => {
                let why = format!("{:?} of {} beside rows of {inputs}", part.shape, part.dtype);
                return Err(Error::shape("pack_linear", why));
            }
        }
    }
    if bias.is_some_and(|bias| bias.len() != outputs) {
        return Err(Error::shape("pack_linear", format!("the bias does not have {outputs} elements")));
    }
    Ok((outputs, inputs))
}

/// Checks an embedding's shapes.
pub(crate) fn embed(table: &Linear, ids: &Tensor, out: &Tensor) -> Result<()> {
    if ids.dtype() != DType::U32 || ids.len() != out.rows() || out.row_len() != table.in_features {
        return Err(Error::shape("embed", format!("{ids:?} of {table:?} into {out:?}")));
    }
    Ok(())
}

/// Checks the shapes of a norm of whole rows.
pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
    let len = x.row_len();
    if weight.len() != len || out.row_len() != len || out.rows() != x.rows() {
        return Err(Error::shape("rms_norm", format!("{x:?} with {weight:?} into {out:?}")));
    }
    Ok(())
}

/// Checks that heads lie within rows.
pub(crate) fn span(op: &'static str, x: &Tensor, span: HeadSpan) -> Result<()> {
    if span.offset + span.num_heads * span.head_dim > x.row_len() {
        return Err(Error::shape(op, format!("{span:?} in {x:?}")));
    }
    Ok(())
}

/// Checks the shapes of a norm of heads.
pub(crate) fn rms_norm_heads(x: &Tensor, heads: HeadSpan, weight: &Tensor) -> Result<()> {
    span("rms_norm_heads", x, heads)?;
    if weight.len() != heads.head_dim {
        return Err(Error::shape("rms_norm_heads", format!("{weight:?} for {heads:?}")));
    }
    Ok(())
}

/// Checks the shapes of a rotation.
pub(crate) fn rope(x: &Tensor, heads: HeadSpan, table: &Tensor, positions: &Tensor) -> Result<()> {
    span("rope", x, heads)?;
    let rotary_dim = table.row_len();
    if rotary_dim > heads.head_dim
        || !rotary_dim.is_multiple_of(2)
        || positions.len() != x.rows()
        || positions.dtype() != DType::U32
    {
        return Err(Error::shape("rope", format!("{heads:?} of {x:?} by {table:?} at {positions:?}")));
    }
    Ok(())
}

/// Checks the shapes of a gated activation.
pub(crate) fn silu_mul(gate_up: &Tensor, out: &Tensor) -> Result<()> {
    if gate_up.row_len() != 2 * out.row_len() || gate_up.rows() != out.rows() {
        return Err(Error::shape("silu_mul", format!("{gate_up:?} into {out:?}")));
    }
    Ok(())
}

/// Checks rows to be gathered.
pub(crate) fn gather_rows(x: &Tensor, rows: &[u32], out: &Tensor) -> Result<()> {
    if out.row_len() != x.row_len()
        || out.dtype() != x.dtype()
        || out.rows() != rows.len()
        || rows.iter().any(|&row| row as usize >= x.rows())
    {
        return Err(Error::shape("gather_rows", format!("{} rows of {x:?} into {out:?}", rows.len())));
    }
    Ok(())
}

/// Checks that a tensor is a row of ids.
pub(crate) fn ids(op: &'static str, ids: &Tensor) -> Result<()> {
    if ids.dtype() != DType::U32 || ids.shape().len() != 1 {
        return Err(Error::shape(op, format!("{ids:?} is no row of ids")));
    }
    Ok(())
}

/// Checks that there is a draw for each row of logits.
pub(crate) fn sample(logits: &Tensor, draws: &[Draw]) -> Result<()> {
    if logits.shape().len() != 2 || logits.rows() != draws.len() || logits.row_len() == 0 {
        return Err(Error::shape("sample", format!("{} draws from {logits:?}", draws.len())));
    }
    if draws.iter().any(|draw| draw.top_k == Some(0)) {
        return Err(Error::Value { name: "top_k", expected: "at least 1", got: "0".to_owned() });
    }
    if let Some(draw) = draws.iter().find(|draw| !(0.0..=1.0).contains(&draw.min_p)) {
        return Err(Error::Value { name: "min_p", expected: "from 0 to 1", got: draw.min_p.to_string() });
    }
    Ok(())
}

/// Checks that each change is of one logit, and each logit changed once.
pub(crate) fn adjust_logits(logits: &Tensor, changes: &[LogitChange]) -> Result<()> {
    let place = |change: &LogitChange| (change.row, change.token);
    let outside = |change: &LogitChange| {
        change.row as usize >= logits.rows() || change.token as usize >= logits.row_len()
    };
    if logits.shape().len() != 2
        || changes.iter().any(outside)
        || !changes.is_sorted_by(|a, b| place(a) < place(b))
    {
        return Err(Error::shape("adjust_logits", format!("{} changes of {logits:?}", changes.len())));
    }
    Ok(())
}

/// Checks that there are bits for all tokens of each row.
pub(crate) fn mask_logits(logits: &Tensor, rows: &[u32], allowed: &[u32]) -> Result<()> {
    if logits.shape().len() != 2
        || rows.len() * logits.row_len().div_ceil(32) != allowed.len()
        || rows.last().is_some_and(|&row| row as usize >= logits.rows())
        || !rows.is_sorted_by(|a, b| a < b)
    {
        let why = format!("{} words for {} rows of {logits:?}", allowed.len(), rows.len());
        return Err(Error::shape("mask_logits", why));
    }
    Ok(())
}

/// Checks that there is a question for each row of logits.
pub(crate) fn logprobs(logits: &Tensor, asked: &[LogprobsOf]) -> Result<()> {
    let outside = |asked: &LogprobsOf| asked.token as usize >= logits.row_len();
    if logits.shape().len() != 2 || logits.rows() != asked.len() || asked.iter().any(outside) {
        return Err(Error::shape("logprobs", format!("{} tokens of {logits:?}", asked.len())));
    }
    match asked.iter().find(|asked| asked.top > LogprobsOf::MOST) {
        None => Ok(()),
        Some(asked) => {
            Err(Error::Value { name: "top logprobs", expected: "at most 20", got: asked.top.to_string() })
        }
    }
}

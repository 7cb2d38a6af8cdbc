// What a launch of attention takes, whichever kernel it is.

struct Args {
    items: u32,
    items_at: u32,       // where the plan's parts are
    sequences_at: u32,
    pages_at: u32,
    scale: f32,          // on scores, to units of log2
    mask: u32,           // 1 causal, 2 left radius, 4 right radius
    left: u32,
    right: u32,
    q_offset: u32,
    q_batch: u32,        // all ones for ragged tokens
    q_token: u32,
    q_head: u32,
    k_offset: u32,
    k_batch: u32,
    k_token: u32,
    k_head: u32,
    v_offset: u32,
    v_batch: u32,
    v_token: u32,
    v_head: u32,
    out_batch: u32,      // in rows of DV; 0 for ragged tokens
    out_token: u32,
    out_head: u32,
    first_head: u32,     // of the part of the KV heads that is bound
    heads: u32,          // of the part
    group: u32,          // query heads per KV head
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<$Q>;
@group(0) @binding(2) var<storage, read> k: array<$KV>;
@group(0) @binding(3) var<storage, read> v: array<$KV>;
@group(0) @binding(4) var<storage, read_write> out: array<$OUT>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> partial: array<$PARTIAL>;

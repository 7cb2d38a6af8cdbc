// Norms, rotates and stores the heads of new tokens: query heads go back to where they were, keys and values into their
// slots of the pages, which are [page, head, slot, dim].
//
// The norm is 64 chains and a tree over them (Zhang and Sennrich 2019); pairs (i, i + rotary_dim / 2) are rotated by the
// token's position (Su et al. 2021).
#if F16
enable f16;
#end

struct Args {
    count: u32,          // tokens times heads of this launch
    q_heads: u32,        // of this launch
    heads: u32,          // KV heads that are in these pages
    first_head: u32,     // of them
    row: u32,            // elements between tokens
    q_offset: u32,
    k_offset: u32,
    v_offset: u32,
    half: u32,           // rotary_dim / 2
    tokens_at: u32,      // where the plan's new tokens are
    eps: f32,
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read_write> x: array<$X>;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read_write> keys: array<$PAIR>;
@group(0) @binding(3) var<storage, read_write> values: array<$PAIR>;
@group(0) @binding(4) var<storage, read> table: array<$X>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
#if NORMED
@group(0) @binding(6) var<storage, read> q_norm: array<$X>;
@group(0) @binding(7) var<storage, read> k_norm: array<$X>;
#end

const D = ${D}u;
const DV = ${DV}u;

#if BF16
fn nearest(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0x7fc0u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
#end

fn stored(a: f32, b: f32) -> $PAIR {
#if F32
    return vec2<f32>(a, b);
#else
#if F16
    return vec2<f16>(f16(a), f16(b));
#else
    return nearest(a) | (nearest(b) << 16u);
#end
#end
}

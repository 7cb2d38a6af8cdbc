// Norms, rotates and stores the heads of new tokens. One work group per token and head: query heads go back to where
// they were, keys and values into their slots of the pages, which are [page, head, slot, dim].
//
// The norm is one chain per thread and a tree over threads (Zhang and Sennrich 2019); pairs (i, i + rotary_dim / 2)
// are rotated by the token's position (Su et al. 2021).
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

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read_write> keys: array<$PAIR>;
@group(0) @binding(3) var<storage, read_write> values: array<$PAIR>;
@group(0) @binding(4) var<storage, read> table: array<f32>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
#if NORMED
@group(0) @binding(6) var<storage, read> q_norm: array<f32>;
@group(0) @binding(7) var<storage, read> k_norm: array<f32>;
#end

const D = ${D}u;
const DV = ${DV}u;

var<workgroup> head: array<f32, $D>;
#if NORMED
var<workgroup> sums: array<f32, 64>;
#end

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

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = group.y * groups.x + group.x;
    if index >= args.count {
        return;
    }
    let all = args.q_heads + 2u * args.heads;
    let token = index / all;
    let number = index % all;
    // Sequence, token within the sequence, page, slot.
    let page = plan[args.tokens_at + token * 4u + 2u];
    let slot = plan[args.tokens_at + token * 4u + 3u];
    if number >= args.q_heads + args.heads {
        let own = number - args.q_heads - args.heads;
        let at = token * args.row + args.v_offset + (args.first_head + own) * DV;
        let to = ((page * args.heads + own) * ${PAGE}u + slot) * (DV / 2u);
        for (var pair = thread; pair < DV / 2u; pair += 64u) {
            values[to + pair] = stored(x[at + 2u * pair], x[at + 2u * pair + 1u]);
        }
        return;
    }
    let is_key = number >= args.q_heads;
    let own = select(number, number - args.q_heads, is_key);
    let at = token * args.row + select(args.q_offset + own * D, args.k_offset + (args.first_head + own) * D, is_key);
    for (var i = thread; i < D; i += 64u) {
        head[i] = x[at + i];
    }
#if NORMED
    var sum = 0.0;
    for (var i = thread; i < D; i += 64u) {
        sum = fma(head[i], head[i], sum);
    }
    sums[thread] = sum;
    workgroupBarrier();
#for step in 0..6
    if thread < (32u >> ${step}u) {
        sums[thread] += sums[thread + (32u >> ${step}u)];
    }
    workgroupBarrier();
#end
    let scale = 1.0 / sqrt(sums[0] / f32(D) + args.eps);
    for (var i = thread; i < D; i += 64u) {
        head[i] = head[i] * scale * select(q_norm[i], k_norm[i], is_key);
    }
#end
    workgroupBarrier();
    let angle = positions[token] * 2u * args.half;
    for (var i = thread; i < args.half; i += 64u) {
        let cosine = table[angle + i];
        let sine = table[angle + args.half + i];
        let a = head[i];
        let b = head[i + args.half];
        head[i] = fma(a, cosine, -(b * sine));
        head[i + args.half] = fma(b, cosine, a * sine);
    }
    workgroupBarrier();
    if is_key {
        let to = ((page * args.heads + own) * ${PAGE}u + slot) * (D / 2u);
        for (var pair = thread; pair < D / 2u; pair += 64u) {
            keys[to + pair] = stored(head[2u * pair], head[2u * pair + 1u]);
        }
    } else {
        for (var i = thread; i < D; i += 64u) {
            x[at + i] = head[i];
        }
    }
}

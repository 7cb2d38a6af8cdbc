// Writes the keys or the values of new tokens into their slots: pages are [page, head, slot, dim].
#if F16
enable f16;
#end

struct Args {
    count: u32,          // pairs of elements: tokens times heads times dim / 2
    offset: u32,         // of the view
    batch_stride: u32,   // all ones for ragged tokens
    token_stride: u32,
    head_stride: u32,
    tokens_at: u32,      // where the plan's new tokens are
    first_head: u32,     // of the part of the heads that is in these pages
    heads: u32,          // of the part
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> tokens: array<f32>;
@group(0) @binding(1) var<storage, read> plan: array<u32>;
@group(0) @binding(2) var<storage, read_write> pages: array<$PAIR>;

#if BF16
fn nearest(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0x7fc0u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
#end

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 64u + thread;
    if index >= args.count {
        return;
    }
    let pair = index % ${DIM / 2}u;
    let head = index / ${DIM / 2}u % args.heads;
    let token = index / ${DIM / 2}u / args.heads;
    // Sequence, token within the sequence and in the batch, page, slot.
    let sequence = plan[args.tokens_at + token * 4u];
    let within = plan[args.tokens_at + token * 4u + 1u];
    let page = plan[args.tokens_at + token * 4u + 2u];
    let slot = plan[args.tokens_at + token * 4u + 3u];
    var at = args.offset + token * args.token_stride;
    if args.batch_stride != 0xffffffffu {
        at = args.offset + sequence * args.batch_stride + within * args.token_stride;
    }
    at += (args.first_head + head) * args.head_stride + pair * 2u;
    let a = tokens[at];
    let b = tokens[at + 1u];
    let to = ((page * args.heads + head) * ${PAGE}u + slot) * ${DIM / 2}u + pair;
#if F32
    pages[to] = vec2<f32>(a, b);
#else
#if F16
    pages[to] = vec2<f16>(f16(a), f16(b));
#else
    pages[to] = nearest(a) | (nearest(b) << 16u);
#end
#end
}

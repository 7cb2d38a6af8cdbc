// Makes negative infinities of the logits whose bits are not set. A thread has one logit.

struct Args {
    count: u32,          // logits of all rows that have bits
    len: u32,            // of a row
    words: u32,          // of a row's bits
    nothing: u32,        // negative infinity, for which the language has no word
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read_write> logits: array<u32>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read> allowed: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 256u + thread;
    if index >= args.count {
        return;
    }
    let row = index / args.len;
    let token = index % args.len;
    if ((allowed[row * args.words + token / 32u] >> (token % 32u)) & 1u) == 0u {
        logits[rows[row] * args.len + token] = args.nothing;
    }
}

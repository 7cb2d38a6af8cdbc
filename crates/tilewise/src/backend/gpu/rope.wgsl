// Rotates the pairs (i, i + rotary_dim / 2) of heads by their row's position (Su et al. 2021), in place.

struct Args {
    pairs: u32,          // rows times heads times half
    heads: u32,
    head_dim: u32,
    half: u32,           // rotary_dim / 2
    row: u32,            // elements between rows
    offset: u32,         // of the first head
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 64u + thread;
    if index >= args.pairs {
        return;
    }
    let i = index % args.half;
    let head = index / args.half % args.heads;
    let row = index / args.half / args.heads;
    let angle = positions[row] * 2u * args.half + i;
    let cosine = table[angle];
    let sine = table[angle + args.half];
    let at = row * args.row + args.offset + head * args.head_dim + i;
    let a = x[at];
    let b = x[at + args.half];
    x[at] = fma(a, cosine, -(b * sine));
    x[at + args.half] = fma(b, cosine, a * sine);
}

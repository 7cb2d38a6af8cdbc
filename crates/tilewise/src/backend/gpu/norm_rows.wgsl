// out = x / sqrt(mean(x^2) + eps) * weight, of rows of whole vectors (Zhang and Sennrich 2019): with the bits of norm.wgsl,
// but ROWS rows a work group, each of 32 threads as in a product that norms its rows (linear_tiles.wgsl). With KEPT, a
// row's 1024 elements at most are read once.
struct Args {
    rows: u32,
    inputs: u32,
    eps: f32,
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<$OUT>>;

// Of each row four columns of 32 sums, padded so that no two begin in one bank; and what the columns add up to.
var<workgroup> sums: array<f32, ${ROWS * 4 * 33}>;
var<workgroup> columns: array<f32, ${ROWS * 4}>;

@compute @workgroup_size(${ROWS * 32})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let own = thread / 32u;
    let row = (group.y * groups.x + group.x) * ${ROWS}u + own;
    let fours = args.inputs / 4u;
    let source = min(row, args.rows - 1u) * fours;
    var near = vec4<f32>();
    var far = vec4<f32>();
#if KEPT
    let at = thread % 32u;
    {
#else
    for (var at = thread % 32u; at < fours; at += 256u) {
#end
#use add_squares
#if KEPT == 0
    }
#end
    let sum = near + far;
#for c in 0..4
    sums[(own * 4u + ${c}u) * 33u + thread % 32u] = sum[$c];
#end
    workgroupBarrier();
    if thread < ${ROWS * 4}u {
        columns[thread] = tree(thread * 33u);
    }
    workgroupBarrier();
    let even = columns[own * 4u] + columns[own * 4u + 2u];
    let odd = columns[own * 4u + 1u] + columns[own * 4u + 3u];
    let scale = factor(even + odd);
#if KEPT
#for u in 0..8
        if row < args.rows && at + ${u * 32}u < fours {
            out[source + at + ${u * 32}u] = vec4<$OUT>(value_$u * scale * weight[at + ${u * 32}u]);
        }
#end
    }
#else
    for (var at = thread % 32u; row < args.rows && at < fours; at += 32u) {
        out[source + at] = vec4<$OUT>(x[source + at] * scale * weight[at]);
    }
#end
}

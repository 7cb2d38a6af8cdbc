// out = x / sqrt(mean(x^2) + eps) * weight, of whole rows or of heads within rows (Zhang and Sennrich 2019).
// One work group per row or head. The sum is one chain per thread and a tree over threads, whatever else is launched.
#if F16
enable f16;
#end

struct Args {
    count: u32,          // rows times heads
    heads: u32,
    len: u32,
    x_row: u32,          // elements between rows
    x_offset: u32,       // of the first head
    out_row: u32,
    out_offset: u32,
    eps: f32,
}
var<immediate> args: Args;

#if IN_PLACE
@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
#else
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> weight: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<$OUT>;
#end

var<workgroup> sums: array<f32, $THREADS>;

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = group.y * groups.x + group.x;
    if index >= args.count {
        return;
    }
    let row = index / args.heads;
    let head = index % args.heads;
    let source = row * args.x_row + args.x_offset + head * args.len;
    var sum = 0.0;
    for (var i = thread; i < args.len; i += ${THREADS}u) {
        sum = fma(x[source + i], x[source + i], sum);
    }
    sums[thread] = sum;
    workgroupBarrier();
#for step in 0..LOG
    if thread < (${THREADS}u >> ${step + 1}u) {
        sums[thread] += sums[thread + (${THREADS}u >> ${step + 1}u)];
    }
    workgroupBarrier();
#end
    let scale = 1.0 / sqrt(sums[0] / f32(args.len) + args.eps);
#if IN_PLACE
    for (var i = thread; i < args.len; i += ${THREADS}u) {
        x[source + i] = x[source + i] * scale * weight[i];
    }
#else
    let to = row * args.out_row + args.out_offset + head * args.len;
    for (var i = thread; i < args.len; i += ${THREADS}u) {
        out[to + i] = $OUT(x[source + i] * scale * weight[i]);
    }
#end
}

// out = x W^T * scale + bias (+ out): a work group has ROWS rows and COLUMNS outputs, and shares both matrices through
// workgroup memory, STEP inputs at a time. An output is one chain of products of T inputs, in order, whatever these
// numbers are. Where there are fewer tiles than subgroups, several compute the same and one of them stores.

const T = ${T}u;
const ROWS = ${ROWS}u;
const COLUMNS = ${COLUMNS}u;
const THREADS = ${THREADS}u;
// Rows of tiles have 16 bytes of padding: no two begin in one bank.
const PITCH = ${STEP + 8}u;

struct Args {
    rows: u32,
    inputs: u32,
    outputs: u32,        // of this part
    stride: u32,         // elements between rows of W
    out_row: u32,        // elements between rows of out
    first: u32,          // the first output of this part
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4<f16>>;
@group(0) @binding(1) var<storage, read> weight: array<vec4<f16>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<$OUT>;

#if WIDE
var<workgroup> x_tile: array<vec4<f16>, ${ROWS * (STEP + 8) / 4}>;
var<workgroup> w_tile: array<vec4<f16>, ${COLUMNS * (STEP + 8) / 4}>;
fn x_put(at: u32, value: vec4<f16>) { x_tile[at / 4u] = value; }
fn w_put(at: u32, value: vec4<f16>) { w_tile[at / 4u] = value; }
#else
var<workgroup> x_tile: array<f16, ${ROWS * (STEP + 8)}>;
var<workgroup> w_tile: array<f16, ${COLUMNS * (STEP + 8)}>;
fn x_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    x_tile[at + ${c}u] = value[$c];
#end
}
fn w_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    w_tile[at + ${c}u] = value[$c];
#end
}
#end
var<workgroup> results: array<f32, ${SUBGROUPS * T * T}>;

// Four elements a thread, and again. No branch is around a load, so that it can be waited for late: rows beyond the end
// repeat the last.
#block load
#for i in 0..ROWS * STEP / 4 / THREADS
        x_next_$i = x[x_from_$i + next / 4u];
#end
#for i in 0..COLUMNS * STEP / 4 / THREADS
        w_next_$i = weight[w_from_$i + next / 4u];
#end
#end
#block store
#for i in 0..ROWS * STEP / 4 / THREADS
        x_put((thread + ${i * THREADS}u) / ${STEP / 4}u * PITCH + (thread + ${i * THREADS}u) % ${STEP / 4}u * 4u, x_next_$i);
#end
#for i in 0..COLUMNS * STEP / 4 / THREADS
        w_put((thread + ${i * THREADS}u) / ${STEP / 4}u * PITCH + (thread + ${i * THREADS}u) % ${STEP / 4}u * 4u, w_next_$i);
#end
#end

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
    // Neighbouring work groups share rows of W while these are in the cache.
    let first_row = workgroup.x * ROWS;
    let first_column = workgroup.y * COLUMNS;
    let row_part = subgroup / ${COLUMN_PARTS}u % ${ROW_PARTS}u * ${R * T}u;
    let column_part = subgroup % ${COLUMN_PARTS}u * ${C * T}u;
#for i in 0..ROWS * STEP / 4 / THREADS
    let x_from_$i = (min(first_row + (thread + ${i * THREADS}u) / ${STEP / 4}u, args.rows - 1u) * args.inputs) / 4u
        + (thread + ${i * THREADS}u) % ${STEP / 4}u;
    var x_next_$i = vec4<f16>();
#end
#for i in 0..COLUMNS * STEP / 4 / THREADS
    let w_from_$i = (min(first_column + (thread + ${i * THREADS}u) / ${STEP / 4}u, args.outputs - 1u) * args.stride) / 4u
        + (thread + ${i * THREADS}u) % ${STEP / 4}u;
    var w_next_$i = vec4<f16>();
#end
#for r in 0..R
#for c in 0..C
    var acc_${r}_$c = coop_mat${T}x${T}<f32, C>();
#end
#end
    {
        let next = 0u;
#use load
    }
    for (var k = 0u; k < args.inputs; k += ${STEP}u) {
#use store
        workgroupBarrier();
        let next = min(k + ${STEP}u, args.inputs - ${STEP}u);
#use load
#for i in 0..STEP / T
#for r in 0..R
        let x_at_${r}_$i = ((row_part + ${r * T}u) * PITCH + ${i * T}u) / ${KW}u;
        let x_${r}_$i = coopLoadT<coop_mat${T}x${T}<f16, A>>(&x_tile[x_at_${r}_$i], ${(STEP + 8) / KW}u);
#end
#for c in 0..C
        let w_at_${c}_$i = ((column_part + ${c * T}u) * PITCH + ${i * T}u) / ${KW}u;
        let w_${c}_$i = coopLoad<coop_mat${T}x${T}<f16, B>>(&w_tile[w_at_${c}_$i], ${(STEP + 8) / KW}u);
#for r in 0..R
        acc_${r}_$c = coopMultiplyAdd(x_${r}_$i, w_${c}_$i, acc_${r}_$c);
#end
#end
#end
        workgroupBarrier();
    }
    let base = subgroup * T * T;
#for r in 0..R
#for c in 0..C
    coopStoreT(acc_${r}_$c, &results[base], T);
    workgroupBarrier();
    for (var i = lane; i < T * T; i += ${SUBGROUP}u) {
        let at_row = first_row + row_part + ${r * T}u + i / T;
        let at_column = first_column + column_part + ${c * T}u + i % T;
        if at_row < args.rows && at_column < args.outputs && subgroup < ${COLUMN_PARTS * ROW_PARTS}u {
            let at = at_row * args.out_row + args.first + at_column;
            var value = results[base + i] * scales[at_column];
#if BIAS
            value += bias[args.first + at_column];
#end
#if ADD
            value += f32(out[at]);
#end
            out[at] = $OUT(value);
        }
    }
    workgroupBarrier();
#end
#end
}

// out = x W^T * scale + bias (+ out): a work group has ROWS rows and COLUMNS outputs, and shares x through workgroup
// memory, STEP inputs at a time. An output is one chain of products of T inputs, in order, whatever these numbers are.
// Where there are fewer tiles than subgroups, the others only fetch. How weights come to matrices, and results to memory,
// is before this text: in linear_elements.wgsl where kernels can get at the elements of matrices, or in linear_rows.wgsl.
//
// With SILU, out = silu(gate) * up of the halves of that product, whose tiles of columns take turns.
//
// With NORM, which few rows have, x is f32 and normed here, with the bits of norm.wgsl, while the first weights are on
// their way: 32 threads have a row, four neighbouring chains of its sum and the four 128 further on each, and add them in
// the order of its tree. All inputs of all rows are kept, T of each row after T of the row before, so that a tile of
// matrix units is in one piece; what it has below the last row is of no row that is stored.

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
#if NORM
    eps: f32,
#end
}
var<immediate> args: Args;

#if NORM
@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
#else
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
#end
@group(0) @binding(1) var<storage, read> weight: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<$OUTS>;
#if NORM
@group(0) @binding(5) var<storage, read> norm: array<vec4<f32>>;

// Of each row four columns of 32 sums, padded so that no two begin in one bank; and what the columns add up to.
var<workgroup> sums: array<f32, ${NORMED_ROWS * 4 * 33}>;
var<workgroup> columns: array<f32, ${NORMED_ROWS * 4}>;
#end

#if WIDE
var<workgroup> x_tile: array<vec4<f16>, ${X / 4}>;
fn x_put(at: u32, value: vec4<f16>) { x_tile[at / 4u] = value; }
#else
var<workgroup> x_tile: array<f16, $X>;
fn x_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    x_tile[at + ${c}u] = value[$c];
#end
}
#end

fn four(low: u32, high: u32) -> vec4<f16> {
    return vec4<f16>(vec4<f32>(unpack2x16float(low), unpack2x16float(high)));
}

// Eight elements a thread, and again. No branch is around a load, so that it can be waited for late: rows beyond the
// end repeat the last.
#block load
#if NORM == 0
#for i in 0..(ROWS * STEP / 8 + THREADS - 1) / THREADS
        x_next_$i = x[x_from_$i + next / 8u];
#end
#end
#use load_weights
#end
#block store
#if NORM == 0
#for i in 0..(ROWS * STEP / 8 + THREADS - 1) / THREADS
        if thread + ${i * THREADS}u < ${ROWS * STEP / 8}u {
            let at = (thread + ${i * THREADS}u) / ${STEP / 8}u * PITCH + (thread + ${i * THREADS}u) % ${STEP / 8}u * 8u;
            x_put(at, four(x_next_$i.x, x_next_$i.y));
            x_put(at + 4u, four(x_next_$i.z, x_next_$i.w));
        }
#end
#end
#use store_weights
#end

#if NORM
// Eight inputs of a row where their tiles are.
fn put_normed(row: u32, k: u32, low: vec4<f32>, high: vec4<f32>) {
    let at = (k / T * args.rows + row) * T + k % T;
    x_put(at, vec4<f16>(low));
    x_put(at + 4u, vec4<f16>(high));
}
#end

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32,
        @builtin(subgroup_id) subgroup: u32, @builtin(subgroup_invocation_id) lane: u32) {
    // Neighbouring work groups share rows of W while these are in the cache.
    let first_row = workgroup.x * ROWS;
    let first_column = workgroup.y * ${COLUMNS / (1 + SILU)}u;
    let row_part = subgroup / ${COLUMN_PARTS}u % ${ROW_PARTS}u * ${R * T}u;
    let column_part = subgroup % ${COLUMN_PARTS}u * ${C * T}u;
#if NORM == 0
#for i in 0..(ROWS * STEP / 8 + THREADS - 1) / THREADS
    let x_from_$i = (min(first_row + (thread + ${i * THREADS}u) / ${STEP / 8}u, args.rows - 1u) * args.inputs) / 8u
        + (thread + ${i * THREADS}u) % ${STEP / 8}u;
    var x_next_$i = vec4<u32>();
#end
#end
#use begin_weights
#for r in 0..R
#for c in 0..C
    var acc_${r}_$c = coop_mat${T}x${T}<f32, C>();
#end
#end
    {
        let next = 0u;
#use load
    }
#if NORM
    let fours = args.inputs / 4u;
    // Weights of the norm are there when the sums are.
    var low = norm[min(2u * thread, fours - 2u)];
    var high = norm[min(2u * thread, fours - 2u) + 1u];
    for (var row = thread / 32u; row < args.rows; row += THREADS / 32u) {
        let source = row * fours;
        var near = vec4<f32>();
        var far = vec4<f32>();
        for (var at = thread % 32u; at < fours; at += 256u) {
#use add_squares
        }
        let sum = near + far;
#for c in 0..4
        sums[(row * 4u + ${c}u) * 33u + thread % 32u] = sum[$c];
#end
    }
    workgroupBarrier();
    if thread < 4u * args.rows {
        columns[thread] = tree(thread * 33u);
    }
    workgroupBarrier();
    for (var at = 2u * thread; at < fours; at += 2u * THREADS) {
        let next = min(at + 2u * THREADS, fours - 2u);
        let next_low = norm[next];
        let next_high = norm[next + 1u];
        for (var row = 0u; row < args.rows; row++) {
            let even = columns[row * 4u] + columns[row * 4u + 2u];
            let odd = columns[row * 4u + 1u] + columns[row * 4u + 3u];
            let scale = factor(even + odd);
            let source = row * fours + at;
            put_normed(row, at * 4u, x[source] * scale * low, x[source + 1u] * scale * high);
        }
        low = next_low;
        high = next_high;
    }
#end
    for (var k = 0u; k < args.inputs; k += ${STEP}u) {
#use store
        workgroupBarrier();
        let next = min(k + ${STEP}u, args.inputs - ${STEP}u);
#use load
#if COLUMN_PARTS * ROW_PARTS < SUBGROUPS
        for (var once = subgroup < ${COLUMN_PARTS * ROW_PARTS}u; once; once = false) {
#else
        {
#end
#for i in 0..STEP / T
#for r in 0..R
#if NORM
        let x_at_${r}_$i = ((k / T + ${i}u) * args.rows + row_part + ${r * T}u) * T / ${KW}u;
        let x_${r}_$i = coopLoadT<coop_mat${T}x${T}<f16, A>>(&x_tile[x_at_${r}_$i], ${T / KW}u);
#else
        let x_at_${r}_$i = ((row_part + ${r * T}u) * PITCH + ${i * T}u) / ${KW}u;
        let x_${r}_$i = coopLoadT<coop_mat${T}x${T}<f16, A>>(&x_tile[x_at_${r}_$i], ${(STEP + 8) / KW}u);
#end
#end
#for c in 0..C
#use take_weights
#for r in 0..R
        acc_${r}_$c = coopMultiplyAdd(x_${r}_$i, w_${c}_$i, acc_${r}_$c);
#end
#end
#end
        }
        workgroupBarrier();
    }
#use store_results
}

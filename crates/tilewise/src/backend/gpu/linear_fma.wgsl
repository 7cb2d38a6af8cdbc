// out = x W^T * scale + bias (+ out), each output one chain of fused multiply-adds over the inputs in order.
// W is [outputs, stride] row-major, padded with zeros; the work group's rows and columns share both through tiles.
//
// With NORM, which few rows have, x is normed as it is fetched, with the bits of norm.wgsl: a row's 256 chains are eight
// to each of 32 threads, and are added in the order of its tree.
#if F16
enable f16;
#end

const TILE_ROWS = ${ROWS}u;
const TILE_COLUMNS = 64u;
const STEP = 32u;

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

@group(0) @binding(0) var<storage, read> x: array<$IN>;
@group(0) @binding(1) var<storage, read> weight: array<$WEIGHT>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<$OUT>;
#if NORM
@group(0) @binding(5) var<storage, read> norm: array<f32>;

var<workgroup> sums: array<f32, ${NORMED_ROWS * 33}>;
var<workgroup> factors: array<f32, $NORMED_ROWS>;
#end

var<workgroup> x_tile: array<f32, ${ROWS * 33}>;
var<workgroup> w_tile: array<f32, ${64 * 33}>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first_row = group.y * TILE_ROWS;
    let first_column = group.x * TILE_COLUMNS;
    let column = thread % 16u;
    let row = thread / 16u;
#for r in 0..ROWS / 16
#for c in 0..4
    var acc_${r}_$c = 0.0;
#end
#end
#if CHAIN_FROM_OUT
#for r in 0..ROWS / 16
#for c in 0..4
    {
        let at_row = first_row + row + ${r * 16}u;
        let at_column = first_column + column + ${c * 16}u;
        if at_row < args.rows && at_column < args.outputs {
            acc_${r}_$c = f32(out[at_row * args.out_row + args.first + at_column]);
        }
    }
#end
#end
#end
#if NORM
    if thread / 32u < args.rows {
        let source = thread / 32u * args.inputs;
#for c in 0..8
        var chain_$c = 0.0;
#end
        for (var k = thread % 32u; k < args.inputs; k += 256u) {
#for c in 0..8
            let value_$c = x[source + min(k + ${c * 32}u, args.inputs - 1u)];
#end
#for c in 0..8
            {
                // A chain that has ended adds zeros, which changes no bit.
                let value = select(0.0, value_$c, k + ${c * 32}u < args.inputs);
                chain_$c = fma(value, value, chain_$c);
            }
#end
        }
#for c in 0..4
        let half_$c = chain_$c + chain_${c + 4};
#end
        sums[thread / 32u * 33u + thread % 32u] = (half_0 + half_2) + (half_1 + half_3);
    }
    workgroupBarrier();
    if thread < args.rows {
        factors[thread] = factor(tree(thread * 33u));
    }
    workgroupBarrier();
#end
    for (var k = 0u; k < args.inputs; k += STEP) {
        for (var i = thread; i < TILE_ROWS * STEP; i += 256u) {
            let at_row = first_row + i / STEP;
            let at = k + i % STEP;
            var value = 0.0;
            if at_row < args.rows && at < args.inputs {
#if NORM
                value = x[at_row * args.inputs + at] * factors[at_row] * norm[at];
#else
                value = f32(x[at_row * args.inputs + at]);
#end
            }
            x_tile[i / STEP * 33u + i % STEP] = value;
        }
        for (var i = thread; i < TILE_COLUMNS * STEP; i += 256u) {
            let at_column = first_column + i / STEP;
            var value = 0.0;
            if at_column < args.outputs {
                value = f32(weight[at_column * args.stride + k + i % STEP]);
            }
            w_tile[i / STEP * 33u + i % STEP] = value;
        }
        workgroupBarrier();
        let steps = min(STEP, args.inputs - k);
        for (var i = 0u; i < steps; i++) {
#for c in 0..4
            let w_$c = w_tile[(column + ${c * 16}u) * 33u + i];
#end
#for r in 0..ROWS / 16
            let x_$r = x_tile[(row + ${r * 16}u) * 33u + i];
#for c in 0..4
            acc_${r}_$c = fma(x_$r, w_$c, acc_${r}_$c);
#end
#end
        }
        workgroupBarrier();
    }
#for r in 0..ROWS / 16
#for c in 0..4
    {
        let at_row = first_row + row + ${r * 16}u;
        let at_column = first_column + column + ${c * 16}u;
        if at_row < args.rows && at_column < args.outputs {
            let at = at_row * args.out_row + args.first + at_column;
            var value = acc_${r}_$c * scales[at_column];
#if BIAS
            value += bias[args.first + at_column];
#end
#if ADD
            value += f32(out[at]);
#end
            out[at] = $OUT(value);
        }
    }
#end
#end
}

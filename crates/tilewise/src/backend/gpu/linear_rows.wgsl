// Weights as they are, row by row: through workgroup memory to matrices. Results go through it too.

#if WIDE
var<workgroup> w_tile: array<vec4<f16>, ${COLUMNS * (STEP + 8) / 4}>;
fn w_put(at: u32, value: vec4<f16>) { w_tile[at / 4u] = value; }
#else
var<workgroup> w_tile: array<f16, ${COLUMNS * (STEP + 8)}>;
fn w_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    w_tile[at + ${c}u] = value[$c];
#end
}
#end
var<workgroup> results: array<f32, ${SUBGROUPS * T * T}>;

#block begin_weights
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
    let w_row_$i = (thread + ${i * THREADS}u) / ${STEP / 8}u;
#if SILU
    let w_own_$i = min(first_column + w_row_$i / ${2 * T}u * T + w_row_$i % T, args.outputs - 1u)
        + w_row_$i / T % 2u * args.outputs;
#else
    let w_own_$i = min(first_column + w_row_$i, args.outputs - 1u);
#end
    let w_from_$i = w_own_$i * args.stride / 8u + (thread + ${i * THREADS}u) % ${STEP / 8}u;
    var w_next_$i = vec4<u32>();
#end
#end

#block load_weights
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
        w_next_$i = weight[w_from_$i + next / 8u];
#end
#end

#block store_weights
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
        if thread + ${i * THREADS}u < ${COLUMNS * STEP / 8}u {
            let at = (thread + ${i * THREADS}u) / ${STEP / 8}u * PITCH + (thread + ${i * THREADS}u) % ${STEP / 8}u * 8u;
            w_put(at, four(w_next_$i.x, w_next_$i.y));
            w_put(at + 4u, four(w_next_$i.z, w_next_$i.w));
        }
#end
#end

// The matrix of the c-th tile of columns and the i-th of inputs.
#block take_weights
        let w_at_${c}_$i = ((column_part + ${c * T}u) * PITCH + ${i * T}u) / ${KW}u;
        let w_${c}_$i = coopLoad<coop_mat${T}x${T}<f16, B>>(&w_tile[w_at_${c}_$i], ${(STEP + 8) / KW}u);
#end

#block store_results
    let base = subgroup * T * T;
    // What results are scaled by and added to is read before the first is written: no load waits for a store.
#for c in 0..C / (1 + SILU)
#for i in 0..T * T / SUBGROUP
    let column_${c}_$i = first_column + column_part / ${1 + SILU}u + ${c * T}u + (lane + ${i * SUBGROUP}u) % T;
    let scale_${c}_$i = scales[min(column_${c}_$i, args.outputs - 1u)];
#if SILU
    let up_scale_${c}_$i = scales[args.outputs + min(column_${c}_$i, args.outputs - 1u)];
#end
#if BIAS
    let bias_${c}_$i = bias[args.first + min(column_${c}_$i, args.outputs - 1u)];
#end
#end
#end
#if ADD
#for r in 0..R
#for c in 0..C
#for i in 0..T * T / SUBGROUP
    let old_${r}_${c}_$i = f32(out[min(first_row + row_part + ${r * T}u + (lane + ${i * SUBGROUP}u) / T, args.rows - 1u) * args.out_row
        + args.first + min(column_${c}_$i, args.outputs - 1u)]);
#end
#end
#end
#end
#for r in 0..R
#if SILU
#for c in 0..C / 2
    coopStoreT(acc_${r}_${2 * c}, &results[base], T);
    subgroupBarrier();
#for i in 0..T * T / SUBGROUP
    let gate_${r}_${c}_$i = results[base + lane + ${i * SUBGROUP}u] * scale_${c}_$i;
#end
    subgroupBarrier();
    coopStoreT(acc_${r}_${2 * c + 1}, &results[base], T);
    subgroupBarrier();
#for i in 0..T * T / SUBGROUP
    {
        let at_row = first_row + row_part + ${r * T}u + (lane + ${i * SUBGROUP}u) / T;
        if at_row < args.rows && column_${c}_$i < args.outputs && subgroup < ${COLUMN_PARTS * ROW_PARTS}u {
            let gate = gate_${r}_${c}_$i;
            let up = results[base + lane + ${i * SUBGROUP}u] * up_scale_${c}_$i;
            out[at_row * args.out_row + column_${c}_$i] = $OUT(gate / (1.0 + exp(-gate)) * up);
        }
    }
#end
    subgroupBarrier();
#end
#else
#for c in 0..C
    coopStoreT(acc_${r}_$c, &results[base], T);
    subgroupBarrier();
#for i in 0..T * T / SUBGROUP
    {
        let at_row = first_row + row_part + ${r * T}u + (lane + ${i * SUBGROUP}u) / T;
        if at_row < args.rows && column_${c}_$i < args.outputs && subgroup < ${COLUMN_PARTS * ROW_PARTS}u {
            var value = results[base + lane + ${i * SUBGROUP}u] * scale_${c}_$i;
#if BIAS
            value += bias_${c}_$i;
#end
#if ADD
            value += old_${r}_${c}_$i;
#end
            out[at_row * args.out_row + args.first + column_${c}_$i] = $OUT(value);
        }
    }
#end
    subgroupBarrier();
#end
#end
#end
#end

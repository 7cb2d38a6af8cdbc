// Weights in the order in which threads hold the elements of their tiles (matrix.rs): a thread's eight of a tile are
// sixteen bytes, and become a matrix as they come. Results go to memory from where they are.
//
// With DIRECT, for many rows, a subgroup has columns of its own and takes the weights of the next step from memory as
// those of this one are used up. Few rows are few subgroups: all threads fetch for them, through workgroup memory.

const WIDTH = ${WIDTH}u;
const LANES = ${T * T / 8}u;
// Tiles of a step, and threads of all that hold them.
const STEP_LANES = ${STEP / T * T * T / 8}u;

// The places of a matrix's elements, row by row; what columns are multiplied by, and what is added.
var<workgroup> place_tile: array<f32, ${T * T}>;
var<workgroup> scale_tile: array<f32, $COLUMNS>;
#if BIAS
var<workgroup> bias_tile: array<f32, $COLUMNS>;
#end
#if DIRECT == 0
var<workgroup> w_tile: array<vec4<u32>, ${COLUMNS * STEP / 8}>;
#end

// What these do is in spirv/elements.rs.
fn matrix_element(x: coop_mat${T}x${T}<f32, C>, at: u32) -> f32 { return 0.0; }
fn matrix_of_words(words: vec4<u32>) -> coop_mat${T}x${T}<f16, B> { return coop_mat${T}x${T}<f16, B>(); }

// Where a tile of this work group's columns begins; those beyond the end repeat the last.
fn w_begin(first_column: u32, own: u32) -> u32 {
#if SILU
    let column = min(first_column / T + own / 2u, args.outputs / T - 1u) + own % 2u * args.outputs / T;
#else
    let column = min(first_column / T + own, (args.outputs - 1u) / T);
#end
    return column * (args.stride / T) * LANES;
}

#block begin_weights
#if DIRECT
#for c in 0..C
    let w_from_$c = w_begin(first_column, column_part / T + ${c}u) + lane;
#for i in 0..STEP / T
    var w_next_${c}_$i = weight[w_from_$c + ${i}u * LANES];
#end
#end
#else
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
    let w_from_$i = w_begin(first_column, (thread + ${i * THREADS}u) / STEP_LANES) + (thread + ${i * THREADS}u) % STEP_LANES;
    var w_next_$i = vec4<u32>();
#end
#end
    for (var at = thread; at < ${T * T}u; at += THREADS) {
        place_tile[at] = f32(at);
    }
    for (var at = thread; at < COLUMNS; at += THREADS) {
#if SILU
        let column = min(first_column + at / ${2 * T}u * T + at % T, args.outputs - 1u) + at / T % 2u * args.outputs;
#else
        let column = min(first_column + at, args.outputs - 1u);
#end
        scale_tile[at] = scales[column];
#if BIAS
        bias_tile[at] = bias[args.first + column];
#end
    }
#end

#block load_weights
#if DIRECT == 0
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
        w_next_$i = weight[w_from_$i + next / T * LANES];
#end
#end
#end

#block store_weights
#if DIRECT == 0
#for i in 0..(COLUMNS * STEP / 8 + THREADS - 1) / THREADS
        if thread + ${i * THREADS}u < ${COLUMNS * STEP / 8}u {
            w_tile[thread + ${i * THREADS}u] = w_next_$i;
        }
#end
#end
#end

// The matrix of the c-th tile of columns and the i-th of inputs.
#block take_weights
#if DIRECT
        let w_${c}_$i = matrix_of_words(w_next_${c}_$i);
        w_next_${c}_$i = weight[w_from_$c + (next / T + ${i}u) * LANES];
#else
        let w_${c}_$i = matrix_of_words(w_tile[(column_part / T + ${c}u) * STEP_LANES + ${i}u * LANES + lane]);
#end
#end

// WIDTH neighbours of a row at once.
#block store_results
    let places = coopLoadT<coop_mat${T}x${T}<f32, C>>(&place_tile[0], T);
#for j in 0..8 / WIDTH
    let place_$j = u32(matrix_element(places, ${j * WIDTH}u));
    let row_$j = first_row + row_part + place_$j / T;
    let own_$j = column_part + place_$j % T;
    let column_$j = first_column + column_part / ${1 + SILU}u + place_$j % T;
#end
#for b in 0..R / BATCH
    // What results are added to is read before the first is written, as much as there are registers for: no load waits
    // for a store.
#if ADD
#for r in b * BATCH..(b + 1) * BATCH
#for c in 0..C
#for j in 0..8 / WIDTH
    let old_row_${r}_${c}_$j = min(row_$j + ${r * T}u, args.rows - 1u) * args.out_row + args.first;
    let old_at_${r}_${c}_$j = old_row_${r}_${c}_$j + min(column_$j + ${c * T}u, args.outputs - WIDTH);
    let old_${r}_${c}_$j = $VALUES(out[old_at_${r}_${c}_$j / WIDTH]);
#end
#end
#end
#end
#for r in b * BATCH..(b + 1) * BATCH
#for c in 0..C / (1 + SILU)
#for j in 0..8 / WIDTH
    {
#for h in 0..1 + SILU
        let at_$h = own_$j + ${(c * (1 + SILU) + h) * T}u;
#if WIDTH == 2
        let low_$h = matrix_element(acc_${r}_${c * (1 + SILU) + h}, ${2 * j}u);
        let high_$h = matrix_element(acc_${r}_${c * (1 + SILU) + h}, ${2 * j + 1}u);
        let value_$h = vec2<f32>(low_$h, high_$h) * vec2<f32>(scale_tile[at_$h], scale_tile[at_$h + 1u]);
#else
        let value_$h = matrix_element(acc_${r}_${c * (1 + SILU) + h}, ${j}u) * scale_tile[at_$h];
#end
#end
#if SILU
        let value = value_0 / (1.0 + exp(-value_0)) * value_1;
#else
        var value = value_0;
#if BIAS
#if WIDTH == 2
        value += vec2<f32>(bias_tile[at_0], bias_tile[at_0 + 1u]);
#else
        value += bias_tile[at_0];
#end
#end
#if ADD
        value += old_${r}_${c}_$j;
#end
#end
        let row = row_$j + ${r * T}u;
        let column = column_$j + ${c * T}u;
        if row < args.rows && column < args.outputs && subgroup < ${COLUMN_PARTS * ROW_PARTS}u {
            out[(row * args.out_row + args.first + column) / WIDTH] = $OUTS(value);
        }
    }
#end
#end
#end
#end
#end

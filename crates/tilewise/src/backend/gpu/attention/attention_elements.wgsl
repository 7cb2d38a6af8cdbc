// Scores become weights where they are: the elements of a matrix that each thread holds (spirv/elements.rs). A thread has
// elements of ROWS rows of a tile; threads that differ in a bit of LANE_BITS have others of the same rows. While no row's
// maximum has to move, nothing is exchanged. Outputs go to memory from where they are, two neighbours of a row at once: a
// thread has both, or else it has one and the next thread the other. (Queries do not come so: what a factor is made of
// element by element takes registers from the loop, a fifth of its speed; bench/records/2026-11-28-h200.csv.)

alias Tile = coop_mat${T}x${T}<f32, C>;
alias Factor = coop_mat${T}x${T}<f32, A>;

// Keys, then values, two to a word: in this text such matrices are of f32, which stands for f16 (spirv.rs). Before them
// the same memory takes queries.
var<workgroup> tile: array<vec4<f32>, $TILE>;
fn p_put(at: u32, value: vec4<f32>) {
    let word = at / 2u;
    tile[word / 4u][word % 4u] = bitcast<f32>(pack2x16float(value.xy));
    tile[word / 4u][word % 4u + 1u] = bitcast<f32>(pack2x16float(value.zw));
}
fn eight_halves(eight: vec4<u32>) -> vec4<f32> {
#if KV_F16
    return bitcast<vec4<f32>>(eight);
#else
    let even = bitcast<vec4<f32>>(eight << vec4<u32>(16u));
    let odd = bitcast<vec4<f32>>(eight & vec4<u32>(0xffff0000u));
    var halves = vec4<u32>();
#for c in 0..4
    halves[$c] = pack2x16float(vec2<f32>(even[$c], odd[$c]));
#end
    return bitcast<vec4<f32>>(halves);
#end
}
fn k_put_eight(at: u32, eight: vec4<u32>) { tile[at / 8u] = eight_halves(eight); }
fn v_put_eight(at: u32, eight: vec4<u32>) { tile[${KEYS * K_ROW / 8}u + at / 8u] = eight_halves(eight); }
// The places of a matrix's elements, row by row.
var<workgroup> place_tile: array<vec4<f32>, ${T * T / 4}>;

// What these do is in spirv/elements.rs.
fn matrix_exp2(x: Tile) -> Tile { return x; }
fn matrix_times(x: Tile, y: Tile) -> Tile { return x; }
fn matrix_peak(x: Tile) -> f32 { return 0.0; }
fn matrix_factor_of(x: Tile) -> Factor { return Factor(); }
fn matrix_between(x: Tile, places: Tile, first: Tile, end: Tile, otherwise: f32) -> Tile { return x; }
fn matrix_of_rows(x: Tile) -> Tile { return x; }
fn matrix_row_add(x: Tile, y: Tile) -> Tile { return x; }
fn matrix_row_peaks(x: Tile) -> Tile { return x; }
fn matrix_row(x: Tile, row: u32) -> f32 { return 0.0; }
fn matrix_set_row(x: Tile, row: u32, value: f32) -> Tile { return x; }
fn matrix_element(x: Tile, at: u32) -> f32 { return 0.0; }

// What an output that is of no row has for a place.
const NOWHERE = 0xffffffffu;

#block begin_chunk
#for r in 0..R
        // Of each row, the maximum, what is added to its scores for it, and the sum of this thread's weights.
        var tops_$r = Tile();
#for c in 0..ROWS
        tops_$r = matrix_set_row(tops_$r, ${c}u, NONE);
#end
        var less_$r = Tile();
        var sums_$r = Tile();
        // Scores above it need care: all before the first maximum.
        var limit_$r = NONE;
#end
#end

// Of a tile's scores, those of keys that rows do not see are hidden, and maxima of rows are moved.
#block careful
    let own_places = coopLoadT<Tile>(&place_tile[0], ${T / 4}u);
    if partly {
#for n in 0..LOOK / T
        var first_$n = Tile();
        var end_$n = Tile();
#end
#for c in 0..ROWS
        {
            let row = u32(matrix_row(own_places, ${c}u)) / T;
            let seen = row_sees(sequence, item, first_row + ${r * T}u + row);
#for n in 0..LOOK / T
            let from_$n = vec2<u32>(begin + ${n * T}u);
            let in_tile_$n = vec2<f32>(row * T + clamp(seen, from_$n, from_$n + T) - from_$n);
            first_$n = matrix_set_row(first_$n, ${c}u, in_tile_$n.x);
            end_$n = matrix_set_row(end_$n, ${c}u, in_tile_$n.y);
#end
        }
#end
#for n in 0..LOOK / T
        s_${r}_$n = matrix_between(s_${r}_$n, own_places, first_$n, end_$n, HIDDEN);
#end
    }
#for n in 0..LOOK / T
    let peaks_$n = matrix_row_peaks(s_${r}_$n);
#end
    var minus = Tile();
    var keeps = Tile();
    var some_have_none = false;
#for c in 0..ROWS
    {
        var top = matrix_row(peaks_0, ${c}u);
#for n in 1..LOOK / T
        top = max(top, matrix_row(peaks_$n, ${c}u));
#end
#use over_lanes_max
        // The test is that of `peak`, so that what other rows need does not matter to this one.
        let before = matrix_row(tops_$r, ${c}u);
        let begins = before == NONE;
        let moves = top > select(8.0, HIDDEN, begins);
        let now = select(select(before, before + top, moves), select(NONE, top, moves), begins);
        let keep = select(1.0, exp2(-top), moves & !begins);
        some_have_none = some_have_none | (now == NONE);
        tops_$r = matrix_set_row(tops_$r, ${c}u, now);
        less_$r = matrix_set_row(less_$r, ${c}u, select(-now, 0.0, now == NONE));
        sums_$r = matrix_set_row(sums_$r, ${c}u, matrix_row(sums_$r, ${c}u) * keep);
        minus = matrix_set_row(minus, ${c}u, select(0.0, -top, moves));
        keeps = matrix_set_row(keeps, ${c}u, keep);
    }
#end
    limit_$r = select(8.0, NONE, subgroupAny(some_have_none));
#for n in 0..LOOK / T
    s_${r}_$n = s_${r}_$n + matrix_of_rows(minus);
#end
    let keep_all = matrix_of_rows(keeps);
#for t in 0..VT
    o_${r}_$t = matrix_times(o_${r}_$t, keep_all);
#end
#end
#block over_lanes_max
#for b in 0..5
#if LANE_BITS / ((b == 0) * 1 + (b == 1) * 2 + (b == 2) * 4 + (b == 3) * 8 + (b == 4) * 16) % 2
        top = max(top, subgroupShuffleXor(top, ${(b == 0) * 1 + (b == 1) * 2 + (b == 2) * 4 + (b == 3) * 8 + (b == 4) * 16}u));
#end
#end
#end
#block over_lanes_sum
#for b in 0..5
#if LANE_BITS / ((b == 0) * 1 + (b == 1) * 2 + (b == 2) * 4 + (b == 3) * 8 + (b == 4) * 16) % 2
            sum += subgroupShuffleXor(sum, ${(b == 0) * 1 + (b == 1) * 2 + (b == 2) * 4 + (b == 3) * 8 + (b == 4) * 16}u);
#end
#end
#end

// Weights of the scores of keys from `begin`, as factors.
#block weigh
#for r in 0..R
    {
        var peak = matrix_peak(s_${r}_0);
#for n in 1..LOOK / T
        peak = max(peak, matrix_peak(s_${r}_$n));
#end
        let partly = begin < all_see.x || begin + LOOK > all_see.y;
        for (var once = partly || subgroupAny(peak > limit_$r); once; once = false) {
#use careful
        }
    }
#for n in 0..LOOK / T
    s_${r}_$n = matrix_exp2(s_${r}_$n);
    sums_$r = matrix_row_add(sums_$r, s_${r}_$n);
    let p_${r}_$n = matrix_factor_of(s_${r}_$n);
#end
#end
#end

#block store_outputs
#for j in 0..COUNT / WIDTH
                    {
                        let column = split * ${VT * T}u + ${t * T}u + column_$j;
                        let place = bitcast<u32>(matrix_element(place_of, ${j * WIDTH}u));
#if WIDTH == 2
                        let two = vec2<f32>(x_${2 * j}, x_${2 * j + 1});
                        let first_of_two = true;
#else
                        let two = vec2<f32>(x_$j, subgroupShuffleXor(x_$j, 1u));
                        let first_of_two = column % 2u == 0u;
#end
                        if first_of_two && place != NOWHERE && column < DV {
                            store((place + column) / 2u, two * matrix_element(inverse_of, ${j * WIDTH}u));
                        }
                    }
#end
#end

// Rows that end, or go on in the next chunk; what a thread carries there is at places of its own.
#block end_chunk
        // Where elements are is looked up again, not kept in registers meanwhile.
        let own_places = coopLoadT<Tile>(&place_tile[0], ${T / 4}u);
#for j in 0..COUNT / WIDTH
        let column_$j = u32(matrix_element(own_places, ${j * WIDTH}u)) % T;
#end
#for r in 0..R
#for c in 0..ROWS
        let row_${r}_$c = first_row + ${r * T}u + u32(matrix_row(own_places, ${c}u)) / T;
        var sum_${r}_$c = matrix_row(sums_$r, ${c}u);
        {
            var sum = sum_${r}_$c;
#use over_lanes_sum
            sum_${r}_$c = sum;
        }
#end
#end
        // Rows that see a value which was left out are told here, since such code costs registers in the loop.
        if atomicLoad(&bad[0]) != 0u {
#for r in 0..R
#for c in 0..ROWS
            if leaves_out(sequence, item, full, row_${r}_$c, chunk_end - CHUNK, last) {
                sum_${r}_$c = bitcast<f32>(0x7fc00000u + lane % 2u);
            }
#end
#end
        }
        // The thread that says a row's maximum and sum.
        let says = (lane & ${LANE_BITS}u) == 0u && split == 0u;
#for r in 0..R
        {
            // Where rows are goes through matrices as bits, which are never computed with.
            var places = Tile();
            var inverses = Tile();
#if MERGES
            var keeps = Tile();
            var takes = Tile();
            let carried = item.partial / 4u + thread + ${r * (STATE + VT * COUNT / 4) * THREADS}u;
#for s in 0..STATE
            var state_$s = vec4<f32>(NONE, 0.0, NONE, 0.0);
            if !begun {
                state_$s = partial[carried + ${s * THREADS}u];
            }
#end
#else
            var states = Tile();
#end
#for c in 0..ROWS
            {
                let valid = row_${r}_$c <= last_row;
                let row = min(row_${r}_$c, last_row);
                let place = out_row(sequence, item, item.row_begin + row);
                places = matrix_set_row(places, ${c}u, bitcast<f32>(select(NOWHERE, place * DV, valid)));
                let top = matrix_row(tops_$r, ${c}u);
#if MERGES
                let merged = merge(state_${c / 2}[${c % 2 * 2}], state_${c / 2}[${c % 2 * 2 + 1}], top, sum_${r}_$c);
                state_${c / 2}[${c % 2 * 2}] = merged.max;
                state_${c / 2}[${c % 2 * 2 + 1}] = merged.sum;
                keeps = matrix_set_row(keeps, ${c}u, merged.keep);
                takes = matrix_set_row(takes, ${c}u, merged.take);
                inverses = matrix_set_row(inverses, ${c}u, finish(merged.sum));
#if LSE
                if ended && valid && says {
                    lse[place] = lse_of(merged.max, merged.sum);
                }
#end
#else
                inverses = matrix_set_row(inverses, ${c}u, finish(sum_${r}_$c));
                let state = state_start(item, row);
                states = matrix_set_row(states, ${c}u, bitcast<f32>(state));
                if valid && says {
                    if item.partial != 0u {
                        partial[state + DV] = top;
                        partial[state + DV + 1u] = sum_${r}_$c;
                    }
#if LSE
                    if item.partial == 0u {
                        lse[place] = lse_of(top, sum_${r}_$c);
                    }
#end
                }
#end
            }
#end
            let place_of = matrix_of_rows(places);
            let inverse_of = matrix_of_rows(inverses);
#if MERGES
            let keep_of = matrix_of_rows(keeps);
            let take_of = matrix_of_rows(takes);
            if !ended {
#for s in 0..STATE
                partial[carried + ${s * THREADS}u] = state_$s;
#end
            }
#else
            let state_of = matrix_of_rows(states);
#end
#for g in 0..(VT + 3) / 4
#if MERGES
            // Several at a time: their latency would add up.
#for t in g * 4..g * 4 + 4
#if t < VT
#for f in 0..COUNT / 4
            var was_${t}_$f = vec4<f32>();
            if !begun {
                was_${t}_$f = partial[carried + ${(STATE + t * (COUNT / 4) + f) * THREADS}u];
            }
#end
#end
#end
#end
#for t in g * 4..g * 4 + 4
#if t < VT
            {
#for j in 0..COUNT
                var x_$j = matrix_element(o_${r}_$t, ${j}u);
#end
#if MERGES
                if !begun {
#for j in 0..COUNT
                    x_$j = fma(x_$j, matrix_element(take_of, ${j}u), was_${t}_${j / 4}[${j % 4}] * matrix_element(keep_of, ${j}u));
#end
                }
                if !ended {
#for f in 0..COUNT / 4
                    partial[carried + ${(STATE + t * (COUNT / 4) + f) * THREADS}u] = vec4<f32>(x_${4 * f}, x_${4 * f + 1}, x_${4 * f + 2}, x_${4 * f + 3});
#end
                } else {
#use store_outputs
                }
#else
                if item.partial != 0u {
#for j in 0..COUNT
                    {
                        let column = split * ${VT * T}u + ${t * T}u + column_${j / WIDTH} + ${j % WIDTH}u;
                        let state = bitcast<u32>(matrix_element(state_of, ${j}u));
                        if bitcast<u32>(matrix_element(place_of, ${j}u)) != NOWHERE && column < DV {
                            partial[state + column] = x_$j;
                        }
                    }
#end
                } else {
#use store_outputs
                }
#end
            }
#end
#end
#end
        }
#end
#end

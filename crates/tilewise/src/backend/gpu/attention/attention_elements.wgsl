// Scores become weights where they are: the elements of a matrix that each thread holds (spirv/elements.rs). A thread has
// elements of ROWS rows of a tile; threads that differ in a bit of LANE_BITS have others of the same rows. While no row's
// maximum has to move, nothing is exchanged.

alias Tile = coop_mat${T}x${T}<f32, C>;
alias Factor = coop_mat${T}x${T}<f32, A>;

// Keys, then values, two to a word: in this text such matrices are of f32, which stands for f16 (spirv.rs). Between chunks
// the same memory takes what subgroups exchange.
var<workgroup> tile: array<vec4<f32>, $TILE>;
fn s_get(at: u32) -> vec4<f32> { return tile[at / 4u]; }
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
    let places = coopLoadT<Tile>(&place_tile[0], ${T / 4}u);
    if partly {
#for n in 0..LOOK / T
        var first_$n = Tile();
        var end_$n = Tile();
#end
#for c in 0..ROWS
        {
            let row = u32(matrix_row(places, ${c}u)) / T;
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
        s_${r}_$n = matrix_between(s_${r}_$n, places, first_$n, end_$n, HIDDEN);
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

// To the lanes that finish rows.
#block end_chunk
#for r in 0..R
        var row_sum_$r = 0.0;
        var row_max_$r = 0.0;
        {
#for c in 0..ROWS
            {
                var sum = matrix_row(sums_$r, ${c}u);
#use over_lanes_sum
                sums_$r = matrix_set_row(sums_$r, ${c}u, sum);
            }
#end
            let at = s_base / 4u;
            let sums = matrix_of_rows(sums_$r);
            coopStoreT(sums, &tile[at], ${S_ROW / 4}u);
            subgroupBarrier();
            row_sum_$r = s_get(s_base + own * ${S_ROW}u).x;
            subgroupBarrier();
            let tops = matrix_of_rows(tops_$r);
            coopStoreT(tops, &tile[at], ${S_ROW / 4}u);
            subgroupBarrier();
            row_max_$r = s_get(s_base + own * ${S_ROW}u).x;
            subgroupBarrier();
        }
#end
#end

// Scores become weights in memory of the work group: a lane takes a part of a row, which it changes with the others that
// have parts of it. Devices take this whose matrices have elements that cannot be got at.

// Tiles are arrays of vectors where a pointer to a vector may be given to matrix operations, else of scalars.
#if WIDE
var<workgroup> k_tile: array<vec4<f16>, ${KEYS * K_ROW / 4}>;
var<workgroup> v_tile: array<vec4<f16>, ${KEYS * V_ROW / 4}>;
var<workgroup> s_tile: array<vec$F<f32>, ${SUBGROUPS * T * S_ROW / F}>;
var<workgroup> p_tile: array<vec$F<f16>, ${SUBGROUPS * T * S_ROW / F}>;
fn k_put(at: u32, value: vec4<f16>) { k_tile[at / 4u] = value; }
fn v_put(at: u32, value: vec4<f16>) { v_tile[at / 4u] = value; }
fn s_get(at: u32) -> vec$F<f32> { return s_tile[at / ${F}u]; }
fn s_put(at: u32, value: vec$F<f32>) { s_tile[at / ${F}u] = value; }
fn p_put(at: u32, value: vec$F<f32>) { p_tile[at / ${F}u] = vec$F<f16>(value); }
#else
var<workgroup> k_tile: array<f16, ${KEYS * K_ROW}>;
var<workgroup> v_tile: array<f16, ${KEYS * V_ROW}>;
var<workgroup> s_tile: array<f32, ${SUBGROUPS * T * S_ROW}>;
var<workgroup> p_tile: array<f16, ${SUBGROUPS * T * S_ROW}>;
fn k_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    k_tile[at + ${c}u] = value[$c];
#end
}
fn v_put(at: u32, value: vec4<f16>) {
#for c in 0..4
    v_tile[at + ${c}u] = value[$c];
#end
}
fn s_get(at: u32) -> vec$F<f32> {
    var value = vec$F<f32>();
#for c in 0..F
    value[$c] = s_tile[at + ${c}u];
#end
    return value;
}
fn s_put(at: u32, value: vec$F<f32>) {
#for c in 0..F
    s_tile[at + ${c}u] = value[$c];
#end
}
fn p_put(at: u32, value: vec$F<f32>) {
#for c in 0..F
    p_tile[at + ${c}u] = f16(value[$c]);
#end
}
#end
fn four(low: u32, high: u32) -> vec4<f16> {
#if KV_F16
    return vec4<f16>(vec4<f32>(unpack2x16float(low), unpack2x16float(high)));
#else
    return vec4<f16>(bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u)));
#end
}
fn k_put_eight(at: u32, eight: vec4<u32>) {
    k_put(at, four(eight.x, eight.y));
    k_put(at + 4u, four(eight.z, eight.w));
}
fn v_put_eight(at: u32, eight: vec4<u32>) {
    v_put(at, four(eight.x, eight.y));
    v_put(at + 4u, four(eight.z, eight.w));
}
#if F == 4
fn largest(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn total(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }
#else
fn largest(x: vec2<f32>) -> f32 { return max(x.x, x.y); }
fn total(x: vec2<f32>) -> f32 { return x.x + x.y; }
#end

#block begin_chunk
#for r in 0..R
        var row_max_$r = NONE;
        var row_sum_$r = 0.0;
#end
#end

// Scores of the keys from `begin`, weights of this lane's rows, and outputs.
#block weigh
#for r in 0..R
    var keep_$r = 1.0;
#for n in 0..LOOK / T
    let s_${r}_${n}_at = (s_base + ${n * T}u) / ${SW}u;
    coopStoreT(s_${r}_$n, &s_tile[s_${r}_${n}_at], ${S_ROW / SW}u);
#end
    subgroupBarrier();
    {
#for j in 0..LOOK / F / LANES
        var x_$j = s_get(s_own + ${j * LANES * F}u);
#end
        if begin < all_see.x || begin + LOOK > all_see.y {
            // Keys from the first that this lane's row sees; others have larger numbers than `span`.
            let distance = begin + part * ${F}u - seen_$r.x;
            let span = seen_$r.y - seen_$r.x;
#for j in 0..LOOK / F / LANES
#for c in 0..F
            x_$j[$c] = select(HIDDEN, x_$j[$c], distance + ${j * LANES * F + c}u < span);
#end
#end
        }
        var top = largest(x_0);
#for j in 1..LOOK / F / LANES
        top = max(top, largest(x_$j));
#end
#for i in 0..LOG_LANES
        top = max(top, subgroupShuffleXor(top, ${(i == 0) * 1 + (i == 1) * 2 + (i == 2) * 4}u));
#end
        if top > row_max_$r + 8.0 {
            // The first maximum of a chunk finds no outputs to move.
            keep_$r = select(exp2(row_max_$r - top), 1.0, row_max_$r == NONE);
            row_max_$r = top;
        }
        var sum = vec$F<f32>();
#for j in 0..LOOK / F / LANES
        x_$j = exp2(x_$j - row_max_$r);
        sum += x_$j;
        p_put(s_own + ${j * LANES * F}u, x_$j);
#end
        row_sum_$r = fma(row_sum_$r, keep_$r, total(sum));
    }
    subgroupBarrier();
#for n in 0..LOOK / T
    let p_${r}_${n}_at = (s_base + ${n * T}u) / ${PW}u;
    let p_${r}_$n = coopLoadT<coop_mat${T}x${T}<f16, A>>(&p_tile[p_${r}_${n}_at], ${S_ROW / PW}u);
#end
#end
    // Outputs of rows whose maximum has moved go once through workgroup memory.
#for r in 0..R
    for (var moved = subgroupAny(keep_$r != 1.0); moved; moved = false) {
#for t in 0..VT
        {
            let at = s_base / ${SW}u;
            coopStoreT(o_${r}_$t, &s_tile[at], ${S_ROW / SW}u);
            subgroupBarrier();
#for j in 0..T / F / LANES
            s_put(s_own + ${j * LANES * F}u, s_get(s_own + ${j * LANES * F}u) * keep_$r);
#end
            subgroupBarrier();
            o_${r}_$t = coopLoadT<coop_mat${T}x${T}<f32, C>>(&s_tile[at], ${S_ROW / SW}u);
            subgroupBarrier();
        }
#end
    }
#end
#end

#block end_chunk
#for r in 0..R
#for i in 0..LOG_LANES
        row_sum_$r += subgroupShuffleXor(row_sum_$r, ${(i == 0) * 1 + (i == 1) * 2 + (i == 2) * 4}u);
#end
#end
        // Rows that see a value which was left out are told here, since such code costs registers in the loop.
        if atomicLoad(&bad[0]) != 0u {
#for r in 0..R
            if leaves_out(sequence, item, full, row_$r, chunk_end - CHUNK, last) {
                row_sum_$r = bitcast<f32>(0x7fc00000u + part);
            }
#end
        }
        // Outputs through workgroup memory to where they go.
#for r in 0..R
        {
            let valid = row_$r <= last_row;
#if MERGES
            // What the thread carries from chunk to chunk is at places of its own.
            let carried = item.partial / ${F}u + thread + ${r * (VT * T / F / LANES + 1) * THREADS}u;
            var so_far = vec$F<f32>();
            so_far.x = NONE;
            if !begun {
                so_far = partial[carried];
            }
            let merged = merge(so_far.x, so_far.y, row_max_$r, row_sum_$r);
            let inverse = finish(merged.sum);
#else
            let inverse = finish(row_sum_$r);
            let state = state_start(item, min(row_$r, last_row));
#end
            let place = out_row(sequence, item, item.row_begin + min(row_$r, last_row));
#for g in 0..(VT + 3) / 4
#if MERGES
            // Several at a time: their latency would add up.
#for t in g * 4..g * 4 + 4
#if t < VT
#for j in 0..T / F / LANES
            var was_${t}_$j = vec$F<f32>();
            if !begun {
                was_${t}_$j = partial[carried + ${(t * (T / F / LANES) + j + 1) * THREADS}u];
            }
#end
#end
#end
#end
#for t in g * 4..g * 4 + 4
#if t < VT
            {
                let at = s_base / ${SW}u;
                coopStoreT(o_${r}_$t, &s_tile[at], ${S_ROW / SW}u);
            }
            subgroupBarrier();
#for j in 0..T / F / LANES
            {
                var x = s_get(s_own + ${j * LANES * F}u);
                let column = split * ${VT * T}u + ${t * T + j * LANES * F}u + part * ${F}u;
#if MERGES
                if !begun {
                    x = fma(x, vec$F<f32>(merged.take), was_${t}_$j * merged.keep);
                }
                if !ended {
                    partial[carried + ${(t * (T / F / LANES) + j + 1) * THREADS}u] = x;
                } else if valid && column < DV {
#for c in 0..F / 2
                    store((place * DV + column) / 2u + ${c}u, vec2<f32>(x[${2 * c}], x[${2 * c + 1}]) * inverse);
#end
                }
#else
                if valid && column < DV {
                    if item.partial != 0u {
#for c in 0..F
                        partial[state + column + ${c}u] = x[$c];
#end
                    } else {
#for c in 0..F / 2
                        store((place * DV + column) / 2u + ${c}u, vec2<f32>(x[${2 * c}], x[${2 * c + 1}]) * inverse);
#end
                    }
                }
#end
            }
#end
            subgroupBarrier();
#end
#end
#end
#if MERGES
            if !ended {
                so_far.x = merged.max;
                so_far.y = merged.sum;
                partial[carried] = so_far;
            }
#end
            if ended && valid && split == 0u && part == 0u {
#if MERGES
#if LSE
                lse[place] = lse_of(merged.max, merged.sum);
#end
#else
                if item.partial != 0u {
                    partial[state + DV] = row_max_$r;
                    partial[state + DV + 1u] = row_sum_$r;
                }
#if LSE
                if item.partial == 0u {
                    lse[place] = lse_of(row_max_$r, row_sum_$r);
                }
#end
#end
            }
        }
#end
#end

// Attention on matrix units: f16 queries, keys, values and weights, f32 scores and sums. Prefill and split-KV decode
// are this body with other numbers of subgroups.
//
// A subgroup has R tiles of T rows (queries times the heads that share a KV head) of one sequence: each key and value
// that it reads from workgroup memory serves all of them. SPLIT subgroups share the same rows and divide the columns of
// their output. Keys are taken in chunks of CHUNK, which are merged, and fetched in steps of KEYS while those of the step
// before are at work. A subgroup leaves out steps of which none of its rows sees a key, and looks at LOOK keys at a time:
// scores of a tile go through workgroup memory to LANES lanes per row, and weights come back as f16. This concerns the subgroup
// alone, whose barrier orders its own memory. A row's maximum moves only when a look exceeds it by more than 2^8: outputs
// stay in registers meanwhile.
//
// `for (var once = ..)` is `if`, of a condition that is the same for the subgroup but is not seen to be.

const T = ${T}u;
const KEYS = ${KEYS}u;
const LOOK = ${LOOK}u;
const THREADS = ${THREADS}u;
const D = ${D}u;
const DV = ${DV}u;
// Rows are padded so that what lanes touch together lies in different banks.
const K_ROW = ${K_ROW}u;
const V_ROW = ${V_ROW}u;
const S_ROW = ${LOOK + 8}u;
const P_ROW = ${LOOK + 8}u;
const LANES = ${LANES}u;
// The maximum of a row that has seen no key, and the score of a key that is not seen: its weight is zero even then.
const NONE = -3.0e38;
const HIDDEN = -3.4e38;

// Tiles are arrays of vectors where a pointer to a vector may be given to matrix operations, else of scalars.
#if WIDE
var<workgroup> k_tile: array<vec4<f16>, ${KEYS * K_ROW / 4}>;
var<workgroup> v_tile: array<vec4<f16>, ${KEYS * V_ROW / 4}>;
var<workgroup> s_tile: array<vec$F<f32>, ${SUBGROUPS * T * (LOOK + 8) / F}>;
fn k_put(at: u32, value: vec4<f16>) { k_tile[at / 4u] = value; }
fn v_put(at: u32, value: vec4<f16>) { v_tile[at / 4u] = value; }
fn s_get(at: u32) -> vec$F<f32> { return s_tile[at / ${F}u]; }
fn s_put(at: u32, value: vec$F<f32>) { s_tile[at / ${F}u] = value; }
#else
var<workgroup> k_tile: array<f16, ${KEYS * K_ROW}>;
var<workgroup> v_tile: array<f16, ${KEYS * V_ROW}>;
var<workgroup> s_tile: array<f32, ${SUBGROUPS * T * (LOOK + 8)}>;
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
#end
#if OVER
// Weights take the place of the scores that they come from, two to a word: in this text they are matrices of f32, which
// stand for f16 (spirv.rs).
fn p_put(at: u32, value: vec$F<f32>) {
    let word = at / 2u;
    s_tile[word / ${F}u][word % ${F}u] = bitcast<f32>(pack2x16float(value.xy));
#if F == 4
    s_tile[word / 4u][word % 4u + 1u] = bitcast<f32>(pack2x16float(value.zw));
#end
}
#else
#if WIDE
var<workgroup> p_tile: array<vec$F<f16>, ${SUBGROUPS * T * (LOOK + 8) / F}>;
fn p_put(at: u32, value: vec$F<f32>) { p_tile[at / ${F}u] = vec$F<f16>(value); }
#else
var<workgroup> p_tile: array<f16, ${SUBGROUPS * T * (LOOK + 8)}>;
fn p_put(at: u32, value: vec$F<f32>) {
#for c in 0..F
    p_tile[at + ${c}u] = f16(value[$c]);
#end
}
#end
#end
#if F == 4
fn largest(x: vec4<f32>) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn total(x: vec4<f32>) -> f32 { return (x.x + x.y) + (x.z + x.w); }
#else
fn largest(x: vec2<f32>) -> f32 { return max(x.x, x.y); }
fn total(x: vec2<f32>) -> f32 { return x.x + x.y; }
#end
// Whether a value was left out since it is not finite.
var<workgroup> bad: array<atomic<u32>, 4>;

// Eight elements of memory, in pairs. Places in memory are counted in units of UNIT elements.
#if ALIGNED
const UNIT = 8u;
fn k_eight(at: u32) -> vec4<u32> { return k[at]; }
fn v_eight(at: u32) -> vec4<u32> { return v[at]; }
#else
const UNIT = 1u;
fn eight(low: vec4<u32>, last: u32, odd: bool) -> vec4<u32> {
    return select(low, (low >> vec4<u32>(16u)) | (vec4<u32>(low.yzw, last) << vec4<u32>(16u)), odd);
}
fn k_eight(at: u32) -> vec4<u32> {
    let word = at / 2u;
    return eight(vec4<u32>(k[word], k[word + 1u], k[word + 2u], k[word + 3u]), k[word + at % 2u * 4u], at % 2u == 1u);
}
fn v_eight(at: u32) -> vec4<u32> {
    let word = at / 2u;
    return eight(vec4<u32>(v[word], v[word + 1u], v[word + 2u], v[word + 3u]), v[word + at % 2u * 4u], at % 2u == 1u);
}
#end
fn four(low: u32, high: u32) -> vec4<f16> {
#if KV_F16
    return vec4<f16>(vec4<f32>(unpack2x16float(low), unpack2x16float(high)));
#else
    return vec4<f16>(bitcast<vec4<f32>>(vec4<u32>(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u)));
#end
}
fn not_finite(values: vec4<f16>) -> bool {
    let exponents = bitcast<vec4<u32>>(vec4<f32>(values)) & vec4<u32>(0x7f800000u);
    return any(exponents == vec4<u32>(0x7f800000u));
}

// Eight elements a thread, and again: from memory to registers, and from there to the tiles. There is no branch around
// a load, so that it can be waited for late: places beyond the end repeat what is there, with weights of zero.
// The page of a key is looked up a step before.
#block load
#for i in 0..K_LOADS
    {
        let place = thread + ${i * THREADS}u;
        let key = min(next + place / ${DT * T / 8}u, last_key);
#if DT * T == D
        let column = place % ${D / 8}u * (8u / UNIT);
#else
        let column = min(place % ${DT * T / 8}u, ${D / 8 - 1}u) * (8u / UNIT);
#end
#if PAGED
        k_next_$i = k_eight(slot(item, k_page_$i, key) * (D / UNIT) + column);
        k_page_$i = page_of(sequence, min(next + KEYS + place / ${DT * T / 8}u, last_key));
#else
        k_next_$i = k_eight(k_first + key * (args.k_token / UNIT) + column);
#end
    }
#end
#for i in 0..V_LOADS
    {
        let place = thread + ${i * THREADS}u;
        let key = min(next + place / ${VT * SPLIT * T / 8}u, last_key);
#if VT * SPLIT * T == DV
        let column = place % ${DV / 8}u * (8u / UNIT);
#else
        let column = min(place % ${VT * SPLIT * T / 8}u, ${DV / 8 - 1}u) * (8u / UNIT);
#end
#if PAGED
        v_next_$i = v_eight(slot(item, v_page_$i, key) * (DV / UNIT) + column);
        v_page_$i = page_of(sequence, min(next + KEYS + place / ${VT * SPLIT * T / 8}u, last_key));
#else
        v_next_$i = v_eight(v_first + key * (args.v_token / UNIT) + column);
#end
    }
#end
#end
#block store
#for i in 0..K_LOADS
    {
        let place = thread + ${i * THREADS}u;
        if place < ${KEYS * (DT * T / 8)}u {
            let at = place / ${DT * T / 8}u * K_ROW + place % ${DT * T / 8}u * 8u;
            k_put(at, four(k_next_$i.x, k_next_$i.y));
            k_put(at + 4u, four(k_next_$i.z, k_next_$i.w));
        }
    }
#end
#for i in 0..V_LOADS
    {
        let place = thread + ${i * THREADS}u;
        if place < ${KEYS * (VT * SPLIT * T / 8)}u {
            let at = place / ${VT * SPLIT * T / 8}u * V_ROW + place % ${VT * SPLIT * T / 8}u * 8u;
            v_put(at, four(v_next_$i.x, v_next_$i.y));
            v_put(at + 4u, four(v_next_$i.z, v_next_$i.w));
        }
    }
#end
    if next < full.x || next + KEYS > full.y {
#for i in 0..V_LOADS
        {
            let place = thread + ${i * THREADS}u;
            let low = four(v_next_$i.x, v_next_$i.y);
            let high = four(v_next_$i.z, v_next_$i.w);
            if place < ${KEYS * (VT * SPLIT * T / 8)}u && (not_finite(low) || not_finite(high)) {
                let at = place / ${VT * SPLIT * T / 8}u * V_ROW + place % ${VT * SPLIT * T / 8}u * 8u;
                v_put(at, vec4<f16>());
                v_put(at + 4u, vec4<f16>());
                atomicStore(&bad[0], 1u);
            }
        }
#end
    }
#end

// Scores of the keys from `begin`, weights of this lane's rows, and outputs.
#block look
#for r in 0..R
#for n in 0..LOOK / T
    var s_${r}_$n = coop_mat${T}x${T}<f32, C>();
#end
#end
#for d in 0..DT
#for n in 0..LOOK / T
    {
        let at = ${((l * LOOK + n * T) * K_ROW + d * T) / KW}u;
        let key = coopLoad<coop_mat${T}x${T}<f16, B>>(&k_tile[at], ${K_ROW / KW}u);
#for r in 0..R
        s_${r}_$n = coopMultiplyAdd(q_${r}_$d, key, s_${r}_$n);
#end
    }
#end
#end
#for r in 0..R
    var keep_$r = 1.0;
#for n in 0..LOOK / T
    let s_${r}_${n}_at = (s_base + ${n * T}u) / ${SW}u;
    coopStoreT(s_${r}_$n, &s_tile[s_${r}_${n}_at], ${(LOOK + 8) / SW}u);
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
#if OVER
        subgroupBarrier();
#end
        var sum = vec$F<f32>();
#for j in 0..LOOK / F / LANES
        x_$j = exp2(x_$j - row_max_$r);
        sum += x_$j;
        p_put(p_own + ${j * LANES * F}u, x_$j);
#end
        row_sum_$r = fma(row_sum_$r, keep_$r, total(sum));
    }
    subgroupBarrier();
#for n in 0..LOOK / T
    let p_${r}_${n}_at = (p_base + ${n * T}u) / ${PW}u;
    let p_${r}_$n = coopLoadT<coop_mat${T}x${T}<$P, A>>(&$P_TILE[p_${r}_${n}_at], ${(LOOK + 8) / PW}u);
#end
#if OVER
    subgroupBarrier();
#end
#end
    // Outputs of rows whose maximum has moved go once through workgroup memory.
#for r in 0..R
    for (var moved = subgroupAny(keep_$r != 1.0); moved; moved = false) {
#for t in 0..VT
        {
            let at = s_base / ${SW}u;
            coopStoreT(o_${r}_$t, &s_tile[at], ${(LOOK + 8) / SW}u);
            subgroupBarrier();
#for j in 0..T / F / LANES
            s_put(o_own + ${j * LANES * F}u, s_get(o_own + ${j * LANES * F}u) * keep_$r);
#end
            subgroupBarrier();
            o_${r}_$t = coopLoadT<coop_mat${T}x${T}<f32, C>>(&s_tile[at], ${(LOOK + 8) / SW}u);
            subgroupBarrier();
        }
#end
    }
#end
#for n in 0..LOOK / T
#for t in 0..VT
    {
        let at = (${(l * LOOK + n * T) * V_ROW + t * T}u + split * ${VT * T}u) / ${KW}u;
        let value = coopLoadT<coop_mat${T}x${T}<f16, B>>(&v_tile[at], ${V_ROW / KW}u);
#for r in 0..R
        o_${r}_$t = coopMultiplyAdd(p_${r}_$n, value, o_${r}_$t);
#end
    }
#end
#end
#end

// The keys from x to before y are those of an item that one of its rows sees; none where there is no such row.
fn row_sees(sequence: Sequence, item: Item, row: u32) -> vec2<u32> {
    let seen = visible(sequence, item, row);
    let own = vec2<u32>(max(seen.x, item.key_begin), min(seen.y, item.key_end));
    return select(vec2<u32>(), own, item.row_begin + row < item.row_end && own.x < own.y);
}

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
    let index = workgroup.y * groups.x + workgroup.x;
    if index >= args.items {
        return;
    }
    // Matrix operations need a return to be seen to be uniform: calls are not looked into, and `||` is a branch.
    let head = plan[args.items_at + index * 8u + 1u];
    if head - args.first_head >= args.heads {
        return;
    }
    let item = read_item(args.items_at + index * 8u);
    let sequence = read_sequence(args.sequences_at + item.sequence * 6u);
    let split = subgroup % ${SPLIT}u;
    let s_base = subgroup * T * S_ROW;
#if OVER
    let p_base = 2u * s_base;
#else
    let p_base = subgroup * T * P_ROW;
#end
    // This lane's row of each of its subgroup's tiles, and its share of the row's columns.
    let own = lane / LANES;
    let part = lane % LANES;
    let s_own = s_base + own * S_ROW + part * ${F}u;
    let p_own = p_base + own * P_ROW + part * ${F}u;
    let o_own = s_base + own * S_ROW + part * ${F}u;
    let first_row = subgroup / ${SPLIT}u * ${R * T}u;
    let last_row = item.row_end - item.row_begin - 1u;
#for r in 0..R
    let row_$r = first_row + ${r * T}u + own;
    let seen_$r = row_sees(sequence, item, row_$r);
#end
    // The keys that all rows see, and those that one does: of this subgroup, and of the work group. Steps outside of the
    // former need care: a value that is not finite must not reach a row by a zero weight.
    let own_first = visible(sequence, item, min(first_row, last_row));
    let own_last = visible(sequence, item, min(first_row + ${R * T - 1}u, last_row));
    let all_see = vec2<u32>(max(own_last.x, item.key_begin), min(own_first.y, item.key_end));
    let one_sees = vec2<u32>(max(own_first.x, item.key_begin), min(own_last.y, item.key_end));
    let any_see = select(vec2<u32>(), one_sees, first_row <= last_row);
    let group_first = visible(sequence, item, 0u);
    let group_last = visible(sequence, item, last_row);
    let full = vec2<u32>(max(group_last.x, item.key_begin), min(group_first.y, item.key_end));

    // Queries, scaled, through the weights' place to registers. All are fetched before the first is waited for.
#for r in 0..R
    let q_from_$r = q_start(sequence, item, item.row_begin + min(row_$r, last_row));
#for s in 0..(DT * T + LOOK - 1) / LOOK
#for j in 0..LOOK / F / LANES
    var x_${r}_${s}_$j = vec$F<f32>();
    {
        let column = ${s * LOOK + j * LANES * F}u + part * ${F}u;
        let at = q_from_$r + min(column, D - ${F}u);
#for c in 0..F
        x_${r}_${s}_$j[$c] = q_at(at + ${c}u) * args.scale;
#end
        x_${r}_${s}_$j = select(vec$F<f32>(), x_${r}_${s}_$j, row_$r <= last_row && column < D);
    }
#end
#end
#for s in 0..(DT * T + LOOK - 1) / LOOK
#for j in 0..LOOK / F / LANES
    p_put(p_own + ${j * LANES * F}u, x_${r}_${s}_$j);
#end
    subgroupBarrier();
#for t in 0..LOOK / T
#if s * (LOOK / T) + t < DT
    let q_${r}_${s * (LOOK / T) + t}_at = (p_base + ${t * T}u) / ${PW}u;
    let q_${r}_${s * (LOOK / T) + t} = coopLoadT<coop_mat${T}x${T}<$P, A>>(&$P_TILE[q_${r}_${s * (LOOK / T) + t}_at], ${(LOOK + 8) / PW}u);
#end
#end
    subgroupBarrier();
#end
#end

#for r in 0..R
    var row_max_$r = NONE;
    var row_sum_$r = 0.0;
#end
    if thread == 0u {
        atomicStore(&bad[0], 0u);
    }
    let first = item.key_begin / KEYS * KEYS;
    let last_key = max(item.key_end, 1u) - 1u;
#for i in 0..K_LOADS
    var k_next_$i = vec4<u32>();
#end
#for i in 0..V_LOADS
    var v_next_$i = vec4<u32>();
#end
#if PAGED
    // An item without keys has no pages.
#for i in 0..K_LOADS
    var k_page_$i = 0u;
    if item.key_end > 0u {
        k_page_$i = page_of(sequence, min(first + (thread + ${i * THREADS}u) / ${DT * T / 8}u, last_key));
    }
#end
#for i in 0..V_LOADS
    var v_page_$i = 0u;
    if item.key_end > 0u {
        v_page_$i = page_of(sequence, min(first + (thread + ${i * THREADS}u) / ${VT * SPLIT * T / 8}u, last_key));
    }
#end
#else
    let k_first = k_begin(sequence, item) / UNIT;
    let v_first = v_begin(sequence, item) / UNIT;
#end
    workgroupBarrier();
    {
        let next = first;
        if item.key_end > 0u {
#use load
        }
#use store
    }
    workgroupBarrier();

    var block = first;
    var chunk_end = (first / CHUNK + 1u) * CHUNK;
    loop {
#for r in 0..R
#for t in 0..VT
        var o_${r}_$t = coop_mat${T}x${T}<f32, C>();
#end
#end
        let last = min(chunk_end, item.key_end);
        loop {
            if block >= last {
                break;
            }
            let next = block + KEYS;
#use load
            for (var once = block < any_see.y && next > any_see.x; once; once = false) {
#for l in 0..KEYS / LOOK
                {
                    let begin = block + ${l * LOOK}u;
#use look
                }
#end
            }
            // All have used the keys and values of this step.
            workgroupBarrier();
#use store
            workgroupBarrier();
            block += KEYS;
        }

        // Values that are not finite were left out of steps that not all rows see: rows that see them are told here, since
        // such code costs registers in the loop.
        if atomicLoad(&bad[0]) != 0u {
#for r in 0..R
            for (var key = max(seen_$r.x, chunk_end - CHUNK); key < min(seen_$r.y, last); key++) {
                let step = key / KEYS * KEYS;
                if step < full.x || step + KEYS > full.y {
#if PAGED
                    let at = slot(item, page_of(sequence, key), key) * (DV / UNIT);
#else
                    let at = v_first + key * (args.v_token / UNIT);
#end
                    for (var column = 0u; column < DV; column += 8u) {
                        let eight = v_eight(at + column / 8u * (8u / UNIT));
                        if not_finite(four(eight.x, eight.y)) || not_finite(four(eight.z, eight.w)) {
                            row_sum_$r = bitcast<f32>(0x7fc00000u + part);
                        }
                    }
                }
            }
#end
        }
        // The chunk's sum of all lanes of the row, and its outputs through workgroup memory to where they go.
        let ended = chunk_end >= item.key_end;
#if MERGES
        let begun = first / CHUNK == chunk_end / CHUNK - 1u;
#end
#for r in 0..R
        {
            let valid = row_$r <= last_row;
#for i in 0..LOG_LANES
            row_sum_$r += subgroupShuffleXor(row_sum_$r, ${(i == 0) * 1 + (i == 1) * 2 + (i == 2) * 4}u);
#end
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
                coopStoreT(o_${r}_$t, &s_tile[at], ${(LOOK + 8) / SW}u);
            }
            subgroupBarrier();
#for j in 0..T / F / LANES
            {
                var x = s_get(o_own + ${j * LANES * F}u);
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
            row_max_$r = NONE;
            row_sum_$r = 0.0;
        }
#end
        if ended {
            break;
        }
        chunk_end += CHUNK;
    }
}

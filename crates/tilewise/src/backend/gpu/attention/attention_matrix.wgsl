// Attention on matrix units: f16 queries, keys, values and weights, f32 scores and sums. Prefill and split-KV decode
// are this body with other numbers of subgroups; how scores become weights is in attention_elements.wgsl or
// attention_rows.wgsl.
//
// A subgroup has R tiles of T rows (queries times the heads that share a KV head) of one sequence: each key and value
// that it reads from workgroup memory serves all of them. SPLIT subgroups share the same rows and divide the columns of
// their output. Keys are taken in chunks of CHUNK, which are merged, and in steps of KEYS, each fetched while the one
// before is at work. A subgroup leaves out steps of which none of its rows sees a key, and looks at LOOK keys at a time. A
// row's maximum moves only when a look exceeds it by more than 2^8: outputs stay in registers meanwhile.
//
// Steps are put into workgroup memory at the end of the one before where a subgroup has one row tile, and at their own
// begin where it has two: a tenth faster for causal masks, and a twentieth for windows (bench/records/2026-11-28-h200.csv).
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
const S_ROW = ${S_ROW}u;
const LANES = ${LANES}u;
// The maximum of a row that has seen no key, and the score of a key that is not seen: its weight is zero even then.
const NONE = -3.0e38;
const HIDDEN = -3.4e38;

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
// Whether one of eight elements is not finite as f16.
fn not_finite(eight: vec4<u32>) -> bool {
#if KV_F16
    let odd = eight & vec4<u32>(0x7c000000u);
    let even = eight & vec4<u32>(0x7c00u);
    return any(odd == vec4<u32>(0x7c000000u)) || any(even == vec4<u32>(0x7c00u));
#else
    let odd = abs(bitcast<vec4<f32>>(eight & vec4<u32>(0xffff0000u)));
    let even = abs(bitcast<vec4<f32>>(eight << vec4<u32>(16u)));
    return !(all(odd < vec4<f32>(65520.0)) && all(even < vec4<f32>(65520.0)));
#end
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
            k_put_eight(place / ${DT * T / 8}u * K_ROW + place % ${DT * T / 8}u * 8u, k_next_$i);
        }
    }
#end
#for i in 0..V_LOADS
    {
        let place = thread + ${i * THREADS}u;
        if place < ${KEYS * (VT * SPLIT * T / 8)}u {
            v_put_eight(place / ${VT * SPLIT * T / 8}u * V_ROW + place % ${VT * SPLIT * T / 8}u * 8u, v_next_$i);
        }
    }
#end
    if block < full.x || block + KEYS > full.y {
#for i in 0..V_LOADS
        {
            let place = thread + ${i * THREADS}u;
            if place < ${KEYS * (VT * SPLIT * T / 8)}u && not_finite(v_next_$i) {
                v_put_eight(place / ${VT * SPLIT * T / 8}u * V_ROW + place % ${VT * SPLIT * T / 8}u * 8u, vec4<u32>());
                atomicStore(&bad[0], 1u);
            }
        }
#end
    }
#end

// Scores of the keys from `begin`, weights, and outputs.
#block look
#for r in 0..R
#for n in 0..LOOK / T
#if ELEMENTS
    var s_${r}_$n = matrix_of_rows(less_$r);
#else
    var s_${r}_$n = coop_mat${T}x${T}<f32, C>();
#end
#end
#end
#for d in 0..DT
#for n in 0..LOOK / T
    {
        let at = ${((l * LOOK + n * T) * K_ROW + d * T) / KW}u;
        let key = coopLoad<coop_mat${T}x${T}<$P, B>>(&$K_TILE[at], ${K_ROW / KW}u);
#for r in 0..R
        s_${r}_$n = coopMultiplyAdd(q_${r}_$d, key, s_${r}_$n);
#end
    }
#end
#end
#use weigh
#for n in 0..LOOK / T
#for t in 0..VT
    {
        let at = ${V_AT}u + (${(l * LOOK + n * T) * V_ROW + t * T}u + split * ${VT * T}u) / ${KW}u;
        let value = coopLoadT<coop_mat${T}x${T}<$P, B>>(&$V_TILE[at], ${V_ROW / KW}u);
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

// Whether a value that is not finite was left out of what a row sees, of the keys between two: those of steps that not all
// rows of the work group see, which see the keys of `full`.
fn leaves_out(sequence: Sequence, item: Item, full: vec2<u32>, row: u32, begin: u32, end: u32) -> bool {
    let sees = row_sees(sequence, item, row);
    for (var key = max(sees.x, begin); key < min(sees.y, end); key++) {
        let step = key / KEYS * KEYS;
        if step < full.x || step + KEYS > full.y {
#if PAGED
            let at = slot(item, page_of(sequence, key), key) * (DV / UNIT);
#else
            let at = v_begin(sequence, item) / UNIT + key * (args.v_token / UNIT);
#end
            for (var column = 0u; column < DV; column += 8u) {
                if not_finite(v_eight(at + column / UNIT)) {
                    return true;
                }
            }
        }
    }
    return false;
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
    // Where the subgroup exchanges what lanes have of rows.
    let s_base = subgroup * T * S_ROW;
    // This lane's row of each of its subgroup's tiles, and its share of the row's columns.
    let own = lane / LANES;
    let part = lane % LANES;
    let s_own = s_base + own * S_ROW + part * ${F}u;
    let first_row = subgroup / ${SPLIT}u * ${R * T}u;
    let last_row = item.row_end - item.row_begin - 1u;
#for r in 0..R
    let row_$r = first_row + ${r * T}u + own;
#if ELEMENTS == 0
    let seen_$r = row_sees(sequence, item, row_$r);
#end
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
#for c in 0..F / 2
        let two_$c = q_pair(at + ${2 * c}u) * args.scale;
        x_${r}_${s}_$j[${2 * c}] = two_$c.x;
        x_${r}_${s}_$j[${2 * c + 1}] = two_$c.y;
#end
        x_${r}_${s}_$j = select(vec$F<f32>(), x_${r}_${s}_$j, row_$r <= last_row && column < D);
    }
#end
#end
#for s in 0..(DT * T + LOOK - 1) / LOOK
#for j in 0..LOOK / F / LANES
    p_put(s_own + ${j * LANES * F}u, x_${r}_${s}_$j);
#end
    subgroupBarrier();
#for t in 0..LOOK / T
#if s * (LOOK / T) + t < DT
    let q_${r}_${s * (LOOK / T) + t}_at = (s_base + ${t * T}u) / ${PW}u;
    let q_${r}_${s * (LOOK / T) + t} = coopLoadT<coop_mat${T}x${T}<$P, A>>(&$P_TILE[q_${r}_${s * (LOOK / T) + t}_at], ${S_ROW / PW}u);
#end
#end
    subgroupBarrier();
#end
#end

    if thread == 0u {
        atomicStore(&bad[0], 0u);
    }
#if ELEMENTS
    for (var at = thread; at < ${T * T / 4}u; at += THREADS) {
        place_tile[at] = vec4<f32>(4.0 * f32(at)) + vec4<f32>(0.0, 1.0, 2.0, 3.0);
    }
#end
#if R > 1
    // An item without keys comes to no other barrier.
    workgroupBarrier();
#end
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
    {
        let next = first;
        if item.key_end > 0u {
#use load
        }
    }

    var block = first;
    var chunk_end = (first / CHUNK + 1u) * CHUNK;
    loop {
#for r in 0..R
#for t in 0..VT
        var o_${r}_$t = coop_mat${T}x${T}<f32, C>();
#end
#end
#use begin_chunk
        let last = min(chunk_end, item.key_end);
#if R == 1
        workgroupBarrier();
#use store
        workgroupBarrier();
#end
        loop {
            if block >= last {
                break;
            }
#if R > 1
            // All have used the keys and values of the step before.
            workgroupBarrier();
#use store
            workgroupBarrier();
#end
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
            block += KEYS;
#if R == 1
            // As above.
            if block >= last {
                break;
            }
            workgroupBarrier();
#use store
            workgroupBarrier();
#end
        }
        let ended = chunk_end >= item.key_end;
#if MERGES
        let begun = first / CHUNK == chunk_end / CHUNK - 1u;
#end
#use end_chunk
        if ended {
            break;
        }
        chunk_end += CHUNK;
    }
}

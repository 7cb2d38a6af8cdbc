// Attention on matrix units: f16 queries, keys, values and weights, f32 scores and sums. Prefill and split-KV decode
// are this body with other numbers of subgroups.
//
// A work group has ROW_TILES tiles of T rows (queries times the heads that share a KV head) of one sequence; SPLIT
// subgroups share a tile and divide the columns of its output. Keys are taken in chunks of CHUNK and steps of KEYS at
// multiples of these. Scores of a step go to workgroup memory, where LANES lanes have each row; weights come back as
// f16. A row's maximum moves only when a step exceeds it by more than 2^8: outputs stay in registers meanwhile.
//
// A barrier of a subgroup would do where a subgroup hands scores and weights to itself, but its translation orders no
// workgroup memory: bits then differed between runs of other shapes.
//
// `for (var once = ..)` is `if`, of a condition that is the same for the work group but is not seen to be.

const T = ${T}u;
const KEYS = ${KEYS}u;
const THREADS = ${THREADS}u;
const D = ${D}u;
const DV = ${DV}u;
// Rows have 16 bytes of padding: no two rows of a tile begin in one bank.
const K_ROW = ${K_ROW}u;
const V_ROW = ${V_ROW}u;
const S_ROW = ${KEYS + 4}u;
const P_ROW = ${KEYS + 8}u;
const LANES = ${LANES}u;
const NONE = -3.0e38;

struct Args {
    items: u32,
    items_at: u32,       // where the plan's parts are
    sequences_at: u32,
    pages_at: u32,
    scale: f32,          // on scores, to units of log2
    mask: u32,           // 1 causal, 2 left radius, 4 right radius
    left: u32,
    right: u32,
    q_offset: u32,
    q_batch: u32,        // all ones for ragged tokens
    q_token: u32,
    q_head: u32,
    k_offset: u32,
    k_batch: u32,
    k_token: u32,
    k_head: u32,
    v_offset: u32,
    v_batch: u32,
    v_token: u32,
    v_head: u32,
    out_batch: u32,      // in rows of DV; 0 for ragged tokens
    out_token: u32,
    out_head: u32,
    first_head: u32,     // of the part of the KV heads that is bound
    heads: u32,          // of the part
    group: u32,          // query heads per KV head
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> q: array<$Q>;
@group(0) @binding(2) var<storage, read> k: array<$KV>;
@group(0) @binding(3) var<storage, read> v: array<$KV>;
@group(0) @binding(4) var<storage, read_write> out: array<$OUT>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;

// Tiles are arrays of vectors where a pointer to a vector may be given to matrix operations, else of scalars.
#if WIDE
var<workgroup> k_tile: array<vec4<f16>, ${KEYS * K_ROW / 4}>;
var<workgroup> v_tile: array<vec4<f16>, ${KEYS * V_ROW / 4}>;
var<workgroup> s_tile: array<vec2<f32>, ${SUBGROUPS * T * (KEYS + 4) / 2}>;
var<workgroup> p_tile: array<vec2<f16>, ${SUBGROUPS * T * (KEYS + 8) / 2}>;
fn k_put(at: u32, value: vec4<f16>) { k_tile[at / 4u] = value; }
fn v_put(at: u32, value: vec4<f16>) { v_tile[at / 4u] = value; }
fn s_get(at: u32) -> vec2<f32> { return s_tile[at / 2u]; }
fn s_put(at: u32, value: vec2<f32>) { s_tile[at / 2u] = value; }
fn p_put(at: u32, value: vec2<f16>) { p_tile[at / 2u] = value; }
#else
var<workgroup> k_tile: array<f16, ${KEYS * K_ROW}>;
var<workgroup> v_tile: array<f16, ${KEYS * V_ROW}>;
var<workgroup> s_tile: array<f32, ${SUBGROUPS * T * (KEYS + 4)}>;
var<workgroup> p_tile: array<f16, ${SUBGROUPS * T * (KEYS + 8)}>;
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
fn s_get(at: u32) -> vec2<f32> { return vec2<f32>(s_tile[at], s_tile[at + 1u]); }
fn s_put(at: u32, value: vec2<f32>) {
    s_tile[at] = value.x;
    s_tile[at + 1u] = value.y;
}
fn p_put(at: u32, value: vec2<f16>) {
    p_tile[at] = value.x;
    p_tile[at + 1u] = value.y;
}
#end
// One more than the step in which a maximum moved.
var<workgroup> moved: vec4<u32>;
// One more than the step in which a key's value was found not to be finite.
var<workgroup> bad: array<vec4<u32>, ${KEYS}>;

// Four elements from memory.
#if KV_F16
#if ALIGNED
fn k_four(at: u32) -> vec4<f16> { return k[at / 4u]; }
fn v_four(at: u32) -> vec4<f16> { return v[at / 4u]; }
#else
fn halves(low: u32, middle: u32, high: u32, odd: bool) -> vec4<f16> {
    let first = select(low, (low >> 16u) | (middle << 16u), odd);
    let second = select(middle, (middle >> 16u) | (high << 16u), odd);
    return vec4<f16>(vec4<f32>(unpack2x16float(first), unpack2x16float(second)));
}
#end
#else
fn halves(low: u32, middle: u32, high: u32, odd: bool) -> vec4<f16> {
    let first = select(low, (low >> 16u) | (middle << 16u), odd);
    let second = select(middle, (middle >> 16u) | (high << 16u), odd);
    return vec4<f16>(bitcast<vec4<f32>>(vec4<u32>(first << 16u, first & 0xffff0000u, second << 16u, second & 0xffff0000u)));
}
#if ALIGNED
fn k_four(at: u32) -> vec4<f16> {
    let words = k[at / 4u];
    return halves(words.x, words.y, 0u, false);
}
fn v_four(at: u32) -> vec4<f16> {
    let words = v[at / 4u];
    return halves(words.x, words.y, 0u, false);
}
#end
#end
#if ALIGNED
#else
fn k_four(at: u32) -> vec4<f16> {
    let word = at / 2u;
    return halves(k[word], k[word + 1u], k[word + at % 2u * 2u], at % 2u == 1u);
}
fn v_four(at: u32) -> vec4<f16> {
    let word = at / 2u;
    return halves(v[word], v[word + 1u], v[word + at % 2u * 2u], at % 2u == 1u);
}
#end
fn not_finite(values: vec4<f16>) -> bool {
    let exponents = bitcast<vec4<u32>>(vec4<f32>(values)) & vec4<u32>(0x7f800000u);
    return any(exponents == vec4<u32>(0x7f800000u));
}

// Four elements a thread, and again: from memory to registers, and from there to the tiles. There is no branch around
// a load, so that it can be waited for late: places beyond the end repeat what is there, with weights of zero.
#block load_keys
#for i in 0..K_LOADS
    {
        let four = thread + ${i * THREADS}u;
        let key = min(next + four / ${DT * T / 4}u, last_key);
        let column = min(four % ${DT * T / 4}u * 4u, D - 4u);
        k_next_$i = k_four(key_start(sequence, item, key) + column);
    }
#end
#end
#block store_keys
#for i in 0..K_LOADS
    {
        let four = thread + ${i * THREADS}u;
        if four < ${KEYS * (DT * T / 4)}u {
            k_put(four / ${DT * T / 4}u * K_ROW + four % ${DT * T / 4}u * 4u, k_next_$i);
        }
    }
#end
#end
#block load_values
#for i in 0..V_LOADS
    {
        let four = thread + ${i * THREADS}u;
        let key = min(next + four / ${VT * SPLIT * T / 4}u, last_key);
        let column = min(four % ${VT * SPLIT * T / 4}u * 4u, DV - 4u);
        v_next_$i = v_four(value_start(sequence, item, key) + column);
    }
#end
#end
#block store_values
#for i in 0..V_LOADS
    {
        let four = thread + ${i * THREADS}u;
        if four < ${KEYS * (VT * SPLIT * T / 4)}u {
        if edge && not_finite(v_next_$i) {
            v_next_$i = vec4<f16>();
            bad[four / ${VT * SPLIT * T / 4}u] = vec4<u32>(block + 1u);
        }
            v_put(four / ${VT * SPLIT * T / 4}u * V_ROW + four % ${VT * SPLIT * T / 4}u * 4u, v_next_$i);
        }
    }
#end
#end
// Scores of the step at `block`, and the weights of this lane's row.
#block weigh
    keep = 1.0;
    {
#for n in 0..KEYS / T
        var s_$n = coop_mat${T}x${T}<f32, C>();
#end
#for d in 0..DT
#for n in 0..KEYS / T
        {
            let at = ${(n * T * K_ROW + d * T) / KW}u;
            let key = coopLoad<coop_mat${T}x${T}<f16, B>>(&k_tile[at], ${K_ROW / KW}u);
            s_$n = coopMultiplyAdd(q_$d, key, s_$n);
        }
#end
#end
#for n in 0..KEYS / T
        let s_${n}_at = (s_base + ${n * T}u) / ${SW}u;
        coopStoreT(s_$n, &s_tile[s_${n}_at], ${(KEYS + 4) / SW}u);
#end
        workgroupBarrier();
        // Keys from the first that this lane's row sees; others have larger numbers than `span`.
        let distance = block + part * 2u - seen.x;
#for j in 0..KEYS / 2 / LANES
        let in_$j = vec2<bool>(distance + ${j * LANES * 2}u < span, distance + ${j * LANES * 2 + 1}u < span);
        let x_$j = select(vec2<f32>(NONE), s_get(s_own + ${j * LANES * 2}u), in_$j);
#end
        var top = max(x_0.x, x_0.y);
#for j in 1..KEYS / 2 / LANES
        top = max(top, max(x_${j}.x, x_${j}.y));
#end
#for i in 0..LOG_LANES
        top = max(top, subgroupShuffleXor(top, ${(i == 0) * 1 + (i == 1) * 2 + (i == 2) * 4}u));
#end
        if top > NONE && (row_max == NONE || top > row_max + 8.0) {
            keep = select(exp2(row_max - top), 0.0, row_max == NONE);
            // The first maximum of a chunk finds no outputs to move.
            if row_max != NONE {
                moved = vec4<u32>(block + 1u);
            }
            row_max = top;
        }
        row_sum *= keep;
#for j in 0..KEYS / 2 / LANES
        {
            let weight = select(vec2<f32>(), exp2(x_$j - row_max), in_$j);
            row_sum += weight.x + weight.y;
            p_put(p_own + ${j * LANES * 2}u, vec2<f16>(weight));
        }
#end
        workgroupBarrier();
    }
    // All have used the keys, and the values have arrived.
    workgroupBarrier();
#use store_keys
    {
        let next = block + KEYS;
#use load_values
    }
    if block < full.x || block + KEYS > full.y {
        for (var key = max(block, seen.x); key < min(block + KEYS, seen.y); key++) {
            if bad[key % KEYS].x == block + 1u {
                row_sum = bitcast<f32>(0x7fc00000u + part);
            }
        }
    }
#end
// The values of the step at `block` to their tile, and the keys of the next to registers.
#block begin
    {
        let edge = block < full.x || block + KEYS > full.y;
#use store_values
        let next = block + KEYS;
#use load_keys
    }
#end

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
    let p_base = subgroup * T * P_ROW;
    // This lane's row of its subgroup's tile, and its share of the row's columns: pairs part, part + LANES, ..
    let own = lane / LANES;
    let part = lane % LANES;
    let row = subgroup / ${SPLIT}u * T + own;
    let s_own = s_base + own * S_ROW + part * 2u;
    let p_own = p_base + own * P_ROW + part * 2u;
    let valid = item.row_begin + row < item.row_end;
    var seen = visible(sequence, item, row);
    seen = vec2<u32>(max(seen.x, item.key_begin), min(seen.y, item.key_end));
    if !valid || seen.y < seen.x {
        seen = vec2<u32>(0u, 0u);
    }
    let span = seen.y - seen.x;
    // Steps outside of what all rows see need care: a value that is not finite must not reach a row by a zero weight.
    let first_seen = visible(sequence, item, 0u);
    let last_seen = visible(sequence, item, item.row_end - item.row_begin - 1u);
    let full = vec2<u32>(max(last_seen.x, item.key_begin), min(first_seen.y, item.key_end));

    // Queries, scaled, through the weights' place to registers.
#for s in 0..(DT * T + KEYS - 1) / KEYS
    for (var j = 0u; j < ${KEYS / 2 / LANES}u; j++) {
        let column = ${s * KEYS}u + (j * LANES + part) * 2u;
        var pair = vec2<f32>();
        if valid && column < D {
            let at = q_start(sequence, item, item.row_begin + row) + column;
            pair = vec2<f32>(q_at(at), q_at(at + 1u)) * args.scale;
        }
        p_put(p_own + j * LANES * 2u, vec2<f16>(pair));
    }
    workgroupBarrier();
#for t in 0..KEYS / T
#if s * (KEYS / T) + t < DT
    let q_${s * (KEYS / T) + t}_at = (p_base + ${t * T}u) / ${SW}u;
    let q_${s * (KEYS / T) + t} = coopLoadT<coop_mat${T}x${T}<f16, A>>(&p_tile[q_${s * (KEYS / T) + t}_at], ${(KEYS + 8) / SW}u);
#end
#end
    workgroupBarrier();
#end

    var row_max = NONE;
    var row_sum = 0.0;
#if MERGES
    var all_max = NONE;
    var all_sum = 0.0;
#end
    if thread < KEYS {
        bad[thread] = vec4<u32>();
    }
    if thread == 0u {
        moved = vec4<u32>();
    }
    let first = item.key_begin / KEYS * KEYS;
    let last_key = max(item.key_end, 1u) - 1u;
    // The keys and values of the first step.
#for i in 0..K_LOADS
    var k_next_$i = vec4<f16>();
#end
#for i in 0..V_LOADS
    var v_next_$i = vec4<f16>();
#end
    if item.key_end > 0u {
        let next = first;
#use load_keys
#use load_values
    }
#use store_keys
    workgroupBarrier();

    var block = first;
    var chunk_end = (first / CHUNK + 1u) * CHUNK;
    loop {
#for t in 0..VT
        var o_$t = coop_mat${T}x${T}<f32, C>();
#end
        let last = min(chunk_end, item.key_end);
        var keep = 1.0;
        for (var once = block < last; once; once = false) {
#use begin
#use weigh
        }
        // Weights of the step at `block` are there. The inner loop goes on as long as no maximum moves, so that outputs
        // stay where they are; then they go once through workgroup memory.
        loop {
            if block >= last {
                break;
            }
#for t in 0..VT
            {
                let at = s_base / ${SW}u;
                coopStoreT(o_$t, &s_tile[at], ${(KEYS + 4) / SW}u);
                workgroupBarrier();
#for j in 0..T / 2 / LANES
                s_put(s_own + ${j * LANES * 2}u, s_get(s_own + ${j * LANES * 2}u) * keep);
#end
                workgroupBarrier();
                o_$t = coopLoadT<coop_mat${T}x${T}<f32, C>>(&s_tile[at], ${(KEYS + 4) / SW}u);
                workgroupBarrier();
            }
#end
            loop {
#for n in 0..KEYS / T
                let p_${n}_at = (p_base + ${n * T}u) / ${SW}u;
                let p_$n = coopLoadT<coop_mat${T}x${T}<f16, A>>(&p_tile[p_${n}_at], ${(KEYS + 8) / SW}u);
#for t in 0..VT
                {
                    let at = (${n * T * V_ROW + t * T}u + split * ${VT * T}u) / ${KW}u;
                    let value = coopLoadT<coop_mat${T}x${T}<f16, B>>(&v_tile[at], ${V_ROW / KW}u);
                    o_$t = coopMultiplyAdd(p_$n, value, o_$t);
                }
#end
#end
                // All have used the values, and the next keys have arrived.
                workgroupBarrier();
                block += KEYS;
                if block >= last {
                    break;
                }
#use begin
#use weigh
                if moved.x == block + 1u {
                    break;
                }
            }
        }

        // The chunk's sum of all lanes of the row, and its outputs through workgroup memory to where they go.
#for i in 0..LOG_LANES
        row_sum += subgroupShuffleXor(row_sum, ${(i == 0) * 1 + (i == 1) * 2 + (i == 2) * 4}u);
#end
        let ended = chunk_end >= item.key_end;
#if MERGES
        let begun = first / CHUNK == chunk_end / CHUNK - 1u;
        let merged = merge(all_max, all_sum, row_max, row_sum);
        all_max = merged.max;
        all_sum = merged.sum;
        let inverse = finish(all_sum);
        let state = item.partial + row * DV;
#else
        let inverse = finish(row_sum);
        let state = item.partial - 1u + row * (DV + 2u);
#end
        let place = out_row(sequence, item, min(item.row_begin + row, item.row_end - 1u));
#for t in 0..VT
        {
            let at = s_base / ${SW}u;
            coopStoreT(o_$t, &s_tile[at], ${(KEYS + 4) / SW}u);
        }
        workgroupBarrier();
#for j in 0..T / 2 / LANES
        {
            var pair = s_get(s_own + ${j * LANES * 2}u);
            let column = split * ${VT * T}u + ${t * T + j * LANES * 2}u + part * 2u;
            if valid && column < DV {
#if MERGES
                if !begun {
                    pair = merge_out(vec2<f32>(partial[state + column], partial[state + column + 1u]), merged.keep,
                                     pair, merged.take);
                }
                if ended {
                    store(place * (DV / 2u) + column / 2u, pair * inverse);
                } else {
                    partial[state + column] = pair.x;
                    partial[state + column + 1u] = pair.y;
                }
#else
                if item.partial != 0u {
                    partial[state + column] = pair.x;
                    partial[state + column + 1u] = pair.y;
                } else {
                    store(place * (DV / 2u) + column / 2u, pair * inverse);
                }
#end
            }
        }
#end
        workgroupBarrier();
#end
        if ended {
            if valid && split == 0u && part == 0u {
#if MERGES
#if LSE
                lse[place] = lse_of(all_max, all_sum);
#end
#else
                if item.partial != 0u {
                    partial[state + DV] = row_max;
                    partial[state + DV + 1u] = row_sum;
                }
#if LSE
                if item.partial == 0u {
                    lse[place] = lse_of(row_max, row_sum);
                }
#end
#end
            }
            break;
        }
        row_max = NONE;
        row_sum = 0.0;
        chunk_end += CHUNK;
    }
}

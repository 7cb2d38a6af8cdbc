// Attention in f32 by fused multiply-adds: prefill and split-KV decode are this body with other work items.
//
// A work group has up to ROWS rows (queries times the heads that share a KV head) of one sequence. Keys are taken in
// chunks of CHUNK and blocks of BLOCK at multiples of these. A score is one chain over the head, an output one chain
// over the chunk's keys; a row's maximum moves only when a block exceeds it by more than 2^8; chunks are merged in order.

const ROWS = ${ROWS}u;
const BLOCK = 32u;
const SLICE = 32u;
const THREADS = 128u;
const D = ${D}u;
const DV = ${DV}u;
const NONE = -3.0e38;

var<workgroup> q_rows: array<f32, ${ROWS * D}>;
var<workgroup> k_tile: array<f32, ${32 * 33}>;
var<workgroup> weights: array<f32, ${ROWS * 33}>;
// Of each row: the chunk's maximum, its sum, the factor on what was summed before; then the same of all chunks.
var<workgroup> row_max: array<f32, 16>;
var<workgroup> row_sum: array<f32, 16>;
var<workgroup> row_keep: array<f32, 16>;
var<workgroup> row_take: array<f32, 16>;
var<workgroup> all_max: array<f32, 16>;
var<workgroup> all_sum: array<f32, 16>;

#if KV_WORDS == 0
fn k_at(i: u32) -> f32 { return k[i]; }
fn v_at(i: u32) -> f32 { return v[i]; }
#end

#if PAGED
fn key_place(sequence: Sequence, item: Item, key: u32) -> u32 { return key_start(item, page_of(sequence, key), key); }
fn value_place(sequence: Sequence, item: Item, key: u32) -> u32 { return value_start(item, page_of(sequence, key), key); }
#else
fn key_place(sequence: Sequence, item: Item, key: u32) -> u32 { return k_begin(sequence, item) + key * args.k_token; }
fn value_place(sequence: Sequence, item: Item, key: u32) -> u32 { return v_begin(sequence, item) + key * args.v_token; }
#end

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = workgroup.y * groups.x + workgroup.x;
    if index >= args.items {
        return;
    }
    let item = read_item(args.items_at + index * 8u);
    if item.head < args.first_head || item.head >= args.first_head + args.heads {
        return;
    }
    let sequence = read_sequence(args.sequences_at + item.sequence * 6u);
    let rows = item.row_end - item.row_begin;
    for (var i = thread; i < rows * D; i += THREADS) {
        let row = item.row_begin + i / D;
        q_rows[i] = q_at(q_start(sequence, item, row) + i % D);
    }
    if thread < ROWS {
        row_max[thread] = NONE;
        row_sum[thread] = 0.0;
        all_max[thread] = NONE;
        all_sum[thread] = 0.0;
    }
#for a in 0..PAIRS
    var chunk_$a = vec2<f32>();
#if MERGES
    var all_$a = vec2<f32>();
#end
#end
    workgroupBarrier();

    let local_key = thread % BLOCK;
    var block = item.key_begin / BLOCK * BLOCK;
    loop {
        if block >= item.key_end {
            break;
        }
        // Scores of this thread's key with rows thread / BLOCK, + 4, + 8 and + 12.
#for r in 0..ROWS / 4
        var score_$r = 0.0;
#end
        for (var slice = 0u; slice < D; slice += SLICE) {
            for (var i = thread; i < BLOCK * SLICE; i += THREADS) {
                let key = block + i / SLICE;
                let d = slice + i % SLICE;
                var value = 0.0;
                if key < item.key_end && d < D {
                    value = k_at(key_place(sequence, item, key) + d);
                }
                k_tile[i / SLICE * 33u + i % SLICE] = value;
            }
            workgroupBarrier();
            let steps = min(SLICE, D - slice);
            for (var d = 0u; d < steps; d++) {
                let x = k_tile[local_key * 33u + d];
#for r in 0..ROWS / 4
                score_$r = fma(q_rows[(thread / BLOCK + ${r * 4}u) * D + slice + d], x, score_$r);
#end
            }
            workgroupBarrier();
        }
        let key = block + local_key;
#for r in 0..ROWS / 4
        let seen_$r = sees(sequence, item, thread / BLOCK + ${r * 4}u, key);
        weights[(thread / BLOCK + ${r * 4}u) * 33u + local_key] = select(NONE, score_$r * args.scale, seen_$r);
#end
        workgroupBarrier();
        if thread < ROWS {
            var top = NONE;
            for (var i = 0u; i < BLOCK; i++) {
                top = max(top, weights[thread * 33u + i]);
            }
            let old = row_max[thread];
            var keep = 1.0;
            if top > NONE && (old == NONE || top > old + 8.0) {
                keep = select(exp2(old - top), 0.0, old == NONE);
                row_max[thread] = top;
            }
            row_keep[thread] = keep;
        }
        workgroupBarrier();
#for r in 0..ROWS / 4
        {
            let row = thread / BLOCK + ${r * 4}u;
            var weight = exp2(fma(score_$r, args.scale, -row_max[row]));
            weights[row * 33u + local_key] = select(0.0, weight, seen_$r);
        }
#end
        workgroupBarrier();
        if thread < ROWS {
            var sum = 0.0;
            for (var i = 0u; i < BLOCK; i++) {
                sum += weights[thread * 33u + i];
            }
            row_sum[thread] = fma(row_sum[thread], row_keep[thread], sum);
        }
#for a in 0..PAIRS
        {
            let pair = thread + ${a * 128}u;
            if pair < ROWS * (DV / 2u) {
                chunk_$a *= row_keep[pair / (DV / 2u)];
            }
        }
#end
        let last = min(item.key_end, block + BLOCK);
        for (var at = max(block, item.key_begin); at < last; at++) {
            let value = value_place(sequence, item, at);
#for a in 0..PAIRS
            {
                let pair = thread + ${a * 128}u;
                if pair < ROWS * (DV / 2u) {
                    let weight = weights[pair / (DV / 2u) * 33u + at - block];
                    let d = pair % (DV / 2u) * 2u;
                    // A key that the row does not see must not touch it, even if its value is not a number.
                    if weight != 0.0 {
                        chunk_$a = fma(vec2<f32>(weight), vec2<f32>(v_at(value + d), v_at(value + d + 1u)), chunk_$a);
                    }
                }
            }
#end
        }
        workgroupBarrier();
        block += BLOCK;
#if MERGES
        if block % CHUNK == 0u || block >= item.key_end {
            if thread < ROWS {
                let merged = merge(all_max[thread], all_sum[thread], row_max[thread], row_sum[thread]);
                row_keep[thread] = merged.keep;
                row_take[thread] = merged.take;
                all_max[thread] = merged.max;
                all_sum[thread] = merged.sum;
                row_max[thread] = NONE;
                row_sum[thread] = 0.0;
            }
            workgroupBarrier();
#for a in 0..PAIRS
            {
                let pair = thread + ${a * 128}u;
                if pair < ROWS * (DV / 2u) {
                    all_$a = merge_out(all_$a, row_keep[pair / (DV / 2u)], chunk_$a, row_take[pair / (DV / 2u)]);
                }
                chunk_$a = vec2<f32>();
            }
#end
            workgroupBarrier();
        }
#end
    }

#for a in 0..PAIRS
    {
        let pair = thread + ${a * 128}u;
        let row = pair / (DV / 2u);
        let column = pair % (DV / 2u);
        if row < rows {
#if MERGES
            let inverse = finish(all_sum[row]);
            store(out_row(sequence, item, item.row_begin + row) * (DV / 2u) + column, all_$a * inverse);
#else
            if item.partial != 0u {
                let to = state_start(item, row) + column * 2u;
                partial[to] = chunk_$a.x;
                partial[to + 1u] = chunk_$a.y;
            } else {
                let inverse = finish(row_sum[row]);
                store(out_row(sequence, item, item.row_begin + row) * (DV / 2u) + column, chunk_$a * inverse);
            }
#end
        }
    }
#end
    if thread < rows {
#if MERGES
        let top = all_max[thread];
        let sum = all_sum[thread];
#else
        let top = row_max[thread];
        let sum = row_sum[thread];
        if item.partial != 0u {
            let to = state_start(item, thread);
            partial[to + DV] = top;
            partial[to + DV + 1u] = sum;
        }
#end
#if LSE
        if ${MERGES == 1} == 1 || item.partial == 0u {
            lse[out_row(sequence, item, item.row_begin + thread)] = lse_of(top, sum);
        }
#end
    }
}

// Merges the partial states of a row's chunks in order. One work group per row of a merge.

const DV = ${DV}u;

struct Args {
    sequences_at: u32,
    merges_at: u32,      // where the plan's merges are
    out_batch: u32,      // in rows of DV; 0 for ragged tokens
    out_token: u32,
    out_head: u32,
    first_head: u32,     // of the part of the KV heads that is bound
    heads: u32,          // of the part
    group: u32,          // query heads per KV head
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> plan: array<u32>;
@group(0) @binding(1) var<storage, read> partial: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<$OUT>;
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // An item whose keys are the number of chunks and the elements between their states.
    let item = read_item(args.merges_at + workgroup.x * 8u);
    let row = workgroup.y;
    if row >= item.row_end || item.head < args.first_head || item.head >= args.first_head + args.heads {
        return;
    }
    let sequence = read_sequence(args.sequences_at + item.sequence * 6u);
    let first = item.partial - 1u + row * (DV + 2u);
    var top = -3.0e38;
    var sum = 0.0;
#for a in 0..(DV + 127) / 128
    var out_$a = vec2<f32>();
#end
    for (var chunk = 0u; chunk < item.key_begin; chunk++) {
        let at = first + chunk * item.key_end;
        let merged = merge(top, sum, partial[at + DV], partial[at + DV + 1u]);
#for a in 0..(DV + 127) / 128
        {
            let d = min((thread + ${a * 64}u) * 2u, DV - 2u);
            out_$a = merge_out(out_$a, merged.keep, vec2<f32>(partial[at + d], partial[at + d + 1u]), merged.take);
        }
#end
        top = merged.max;
        sum = merged.sum;
    }
    let place = out_row(sequence, item, row);
    let inverse = finish(sum);
#for a in 0..(DV + 127) / 128
    if thread + ${a * 64}u < DV / 2u {
        store(place * (DV / 2u) + thread + ${a * 64}u, out_$a * inverse);
    }
#end
#if LSE
    if thread == 0u {
        lse[place] = lse_of(top, sum);
    }
#end
}

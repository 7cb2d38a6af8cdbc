// Logprobs of each row of logits: that of one token, and of the most probable ones. One work group per row.

struct Args {
    rows: u32,
    len: u32,            // of a row
    most: u32,           // of the most probable, that there is room for
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> logits: array<u32>;
@group(0) @binding(1) var<storage, read> asked: array<vec2<u32>>;       // the token, how many of the most probable
@group(0) @binding(2) var<storage, read_write> out: array<vec2<u32>>;   // ids with their logprobs

// The element that follows a place, the most probable first.
fn next_after(row: u32, thread: u32, place: Place) -> Place {
    if thread == 0u {
        atomicStore(&largest, 0u);
        atomicStore(&first, NOT_FINITE);
    }
    workgroupBarrier();
    var best = Place(0u, NOT_FINITE);
    for (var id = thread; id < args.len; id += THREADS) {
        let key = key_of(logits[row + id]);
        let later = key < place.key || (key == place.key && id > place.id);
        // Ids ascend, so the first of equals stays.
        if later && key > best.key {
            best = Place(key, id);
        }
    }
    atomicMax(&largest, best.key);
    workgroupBarrier();
    let key = atomicLoad(&largest);
    if best.key == key {
        atomicMin(&first, best.id);
    }
    workgroupBarrier();
    if thread == 0u {
        before = vec2<u32>(key, atomicLoad(&first));
    }
    let found = workgroupUniformLoad(&before);
    return Place(found.x, found.y);
}

@compute @workgroup_size($THREADS)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = group.y * groups.x + group.x;
    if index >= args.rows {
        return;
    }
    let row = index * args.len;
    let at = index * (args.most + 1u);
    var place = largest_of(row, thread);
    if place.id == NOT_FINITE {
        if thread == 0u {
            out[at] = vec2<u32>(NOT_FINITE, 0u);
        }
        return;
    }
    let top = logit_of(place.key);
    let total = log_sum(row, thread, top);
    if thread == 0u {
        let token = asked[index].x;
        out[at] = vec2<u32>(token, bitcast<u32>(logit_of(key_of(logits[row + token])) - top - total));
    }
    for (var i = 0u; i < min(asked[index].y, args.len); i++) {
        if i > 0u {
            place = next_after(row, thread, place);
        }
        if thread == 0u {
            out[at + 1u + i] = vec2<u32>(place.id, bitcast<u32>(logit_of(place.key) - top - total));
        }
    }
}

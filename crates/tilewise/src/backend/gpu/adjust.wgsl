// Changes some logits, each once: bias, repetition, penalty.

struct Args {
    count: u32,
    len: u32,            // of a row
}
var<immediate> args: Args;

struct Change {
    row: u32,
    token: u32,
    bias: f32,
    repetition: f32,
    penalty: f32,
}

@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read> changes: array<Change>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 64u + thread;
    if index >= args.count {
        return;
    }
    let change = changes[index];
    let at = change.row * args.len + change.token;
    let biased = logits[at] + change.bias;
    logits[at] = select(biased * change.repetition, biased / change.repetition, biased > 0.0) - change.penalty;
}

// out = silu(gate) * up of rows [gate, up].
#if F16
enable f16;
#end

struct Args {
    count: u32,          // elements of out
    len: u32,            // elements of a row of out
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> gate_up: array<$IN>;
@group(0) @binding(1) var<storage, read_write> out: array<$OUT>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 256u + thread;
    if index >= args.count {
        return;
    }
    let at = index / args.len * 2u * args.len + index % args.len;
    let gate = f32(gate_up[at]);
    let up = f32(gate_up[at + args.len]);
    out[index] = $OUT(gate / (1.0 + exp(-gate)) * up);
}

// out = x in f16, four elements a thread.
enable f16;

struct Args {
    count: u32,
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> out: array<vec4<f16>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 64u + thread;
    if index < args.count {
        out[index] = vec4<f16>(x[index]);
    }
}

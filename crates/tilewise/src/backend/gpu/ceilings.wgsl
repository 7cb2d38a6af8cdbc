// What a device does at best: nothing but multiply-adds between registers, or nothing but reads.

struct Args {
    steps: u32,
    x: f32,
    y: f32,
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;
#if READ
@group(0) @binding(1) var<storage, read> memory: array<vec4<f32>>;
#end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
#if READ
    // A work group's part is contiguous; all loads are under way at once.
    let at = group.x * ${256 * LOADS}u + thread;
    var sum = vec4<f32>();
#for i in 0..LOADS
    let load_$i = memory[at + ${i * 256}u];
#end
#for i in 0..LOADS
    sum += load_$i;
#end
#else
    var sum = vec4<f32>();
#for i in 0..CHAINS
    var chain_$i = vec4<f32>(f32(thread + ${i}u));
#end
    for (var step = 0u; step < args.steps; step++) {
#for i in 0..CHAINS
        chain_$i = fma(chain_$i, vec4<f32>(args.x), vec4<f32>(args.y));
#end
    }
#for i in 0..CHAINS
    sum += chain_$i;
#end
#end
    // A number that no sum is: the result is needed, but nothing is written.
    if dot(sum, vec4<f32>(1.0)) == args.y * 1.0e9 + f32(args.steps) {
        out[0] = sum.x;
    }
}

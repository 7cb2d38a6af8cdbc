// Which elements of a matrix each thread holds, of sums in f32 and of both factors in f16: their places, row by row. The
// second factor is loaded as weights are, whose rows are its columns.

enable f16;
enable wgpu_cooperative_matrix;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

var<workgroup> sums: array<vec4<f32>, ${T * T / 4}>;
var<workgroup> factors: array<vec4<f16>, ${T * T / 4}>;

// What these do is in spirv/elements.rs.
fn matrix_element(x: coop_mat${T}x${T}<f32, C>, at: u32) -> f32 { return 0.0; }
fn matrix_factor(x: coop_mat${T}x${T}<f16, A>, at: u32) -> f16 { return 0.0h; }
fn matrix_weight(x: coop_mat${T}x${T}<f16, B>, at: u32) -> f16 { return 0.0h; }

@compute @workgroup_size(${2 * SUBGROUP})
fn main(@builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
    for (var at = thread; at < ${T * T / 4}u; at += ${2 * SUBGROUP}u) {
        let places = vec4<f32>(4.0 * f32(at)) + vec4<f32>(0.0, 1.0, 2.0, 3.0);
        sums[at] = places;
        factors[at] = vec4<f16>(places);
    }
    workgroupBarrier();
    let sum = coopLoadT<coop_mat${T}x${T}<f32, C>>(&sums[0], ${T / 4}u);
    let factor = coopLoadT<coop_mat${T}x${T}<f16, A>>(&factors[0], ${T / 4}u);
    let weights = coopLoad<coop_mat${T}x${T}<f16, B>>(&factors[0], ${T / 4}u);
    let first = (subgroup * ${SUBGROUP}u + lane) * ${3 * COUNT}u;
#for i in 0..COUNT
    out[first + ${3 * i}u] = matrix_element(sum, ${i}u);
    out[first + ${3 * i + 1}u] = f32(matrix_factor(factor, ${i}u));
    out[first + ${3 * i + 2}u] = f32(matrix_weight(weights, ${i}u));
#end
}

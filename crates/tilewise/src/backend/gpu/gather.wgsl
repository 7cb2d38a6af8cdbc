// out[i] = table[rows[i]], times the row's own scale where the table has one. With T, which only such tables have, the table
// is in tiles of an order of their own.
#if F16
enable f16;
#end

struct Args {
    count: u32,          // elements of out
    len: u32,            // elements of a row of out
    stride: u32,         // elements between rows of the table
    first: u32,          // the row that the table begins with
    rows: u32,           // how many rows it has; others are left as they are
}
var<immediate> args: Args;

@group(0) @binding(0) var<storage, read> table: array<$IN>;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<$OUT>;
#if SCALED
@group(0) @binding(3) var<storage, read> scales: array<f32>;
#if T
// Where the elements of a tile, row by row, are in it.
@group(0) @binding(4) var<storage, read> places: array<u32>;
#end
#end

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * 256u + thread;
    if index >= args.count {
        return;
    }
    let row = rows[index / args.len] - args.first;
    if row >= args.rows {
        return;
    }
    let column = index % args.len;
#if T
    let tile = row / ${T}u * (args.stride / ${T}u) + column / ${T}u;
    let at = tile * ${T * T}u + places[row % ${T}u * ${T}u + column % ${T}u];
#else
    let at = row * args.stride + column;
#end
    let value = f32(table[at]);
#if SCALED
    out[index] = $OUT(value * scales[row]);
#else
    out[index] = $OUT(value);
#end
}

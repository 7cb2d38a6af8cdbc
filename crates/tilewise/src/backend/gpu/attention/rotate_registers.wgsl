// Heads whose pairs are 64 elements apart, or a multiple: 32 threads per token and head have them in registers. A thread
// has two neighbouring elements in each 64, so both elements of every pair, those that are stored together and all of
// two of the norm's chains. All it reads is on its way before the first barrier.

const HEADS = ${HEADS}u;     // of a work group

#if NORMED
var<workgroup> sums: array<vec2<f32>, ${32 * HEADS}>;
var<workgroup> eighths: array<vec2<f32>, ${8 * HEADS}>;
#end

@compute @workgroup_size(${32 * HEADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let place = (group.y * groups.x + group.x) * HEADS + thread / 32u;
    let lane = thread % 32u;
    let index = min(place, args.count - 1u);
    let all = args.q_heads + 2u * args.heads;
    let token = index / all;
    let number = index % all;
    let is_query = number < args.q_heads;
    let is_value = number >= args.q_heads + args.heads;
    var own = number;
    var offset = args.q_offset + own * D;
    if !is_query {
        own = (number - args.q_heads) % args.heads;
        offset = select(args.k_offset, args.v_offset, is_value) + (args.first_head + own) * D;
    }
    // Sequence, token within the sequence, page, slot.
    let page = plan[args.tokens_at + token * 4u + 2u];
    let slot = plan[args.tokens_at + token * 4u + 3u];
    let source = (token * args.row + offset) / 2u + lane;
#for j in 0..PAIRS
    var head_$j = x[source + ${j * 32}u];
#end
#for j in 0..PAIRS / 2
    var cosine_$j = vec2<f32>();
    var sine_$j = vec2<f32>();
#end
#if NORMED
#for j in 0..PAIRS
    var gain_$j = vec2<f32>();
#end
#end
    if !is_value {
        let angle = positions[token] * (D / 2u) + lane;
#for j in 0..PAIRS / 2
        cosine_$j = table[angle + ${j * 32}u];
        sine_$j = table[angle + D / 4u + ${j * 32}u];
#end
#if NORMED
#for j in 0..PAIRS
        if is_query {
            gain_$j = q_norm[lane + ${j * 32}u];
        } else {
            gain_$j = k_norm[lane + ${j * 32}u];
        }
#end
#end
    }
#if NORMED
    var sum = vec2<f32>();
#for j in 0..PAIRS
    sum = fma(head_$j, head_$j, sum);
#end
    sums[thread] = sum;
    workgroupBarrier();
    if lane < 8u {
        eighths[thread / 32u * 8u + lane] = (sums[thread] + sums[thread + 16u]) + (sums[thread + 8u] + sums[thread + 24u]);
    }
    workgroupBarrier();
#for i in 0..8
    let eighth_$i = eighths[thread / 32u * 8u + ${i}u];
#end
    let even = (eighth_0 + eighth_4) + (eighth_2 + eighth_6);
    let odd = (eighth_1 + eighth_5) + (eighth_3 + eighth_7);
    let both = even + odd;
    let scale = 1.0 / sqrt((both.x + both.y) / f32(D) + args.eps);
#end
    if place >= args.count {
        return;
    }
    let to = ((page * args.heads + own) * ${PAGE}u + slot) * (D / 2u) + lane;
    if is_value {
#for j in 0..PAIRS
        values[to + ${j * 32}u] = stored(head_$j.x, head_$j.y);
#end
        return;
    }
#if NORMED
#for j in 0..PAIRS
    head_$j = head_$j * scale * gain_$j;
#end
#end
#for j in 0..PAIRS / 2
    let first_$j = fma(head_$j, cosine_$j, -(head_${j + PAIRS / 2} * sine_$j));
    let second_$j = fma(head_${j + PAIRS / 2}, cosine_$j, head_$j * sine_$j);
    if is_query {
        x[source + ${j * 32}u] = first_$j;
        x[source + ${(j + PAIRS / 2) * 32}u] = second_$j;
    } else {
        keys[to + ${j * 32}u] = stored(first_$j.x, first_$j.y);
        keys[to + ${(j + PAIRS / 2) * 32}u] = stored(second_$j.x, second_$j.y);
    }
#end
}

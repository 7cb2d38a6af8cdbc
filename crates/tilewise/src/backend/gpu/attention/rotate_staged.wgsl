// Heads of any width: one work group per token and head, which is staged in workgroup memory.

var<workgroup> head: array<f32, $D>;
#if NORMED
var<workgroup> sums: array<f32, 64>;
#end

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let index = group.y * groups.x + group.x;
    if index >= args.count {
        return;
    }
    let all = args.q_heads + 2u * args.heads;
    let token = index / all;
    let number = index % all;
    // Sequence, token within the sequence, page, slot.
    let page = plan[args.tokens_at + token * 4u + 2u];
    let slot = plan[args.tokens_at + token * 4u + 3u];
    if number >= args.q_heads + args.heads {
        let own = number - args.q_heads - args.heads;
        let at = token * args.row + args.v_offset + (args.first_head + own) * DV;
        let to = ((page * args.heads + own) * ${PAGE}u + slot) * (DV / 2u);
        for (var pair = thread; pair < DV / 2u; pair += 64u) {
            values[to + pair] = stored(x[at + 2u * pair], x[at + 2u * pair + 1u]);
        }
        return;
    }
    let is_key = number >= args.q_heads;
    let own = select(number, number - args.q_heads, is_key);
    let at = token * args.row + select(args.q_offset + own * D, args.k_offset + (args.first_head + own) * D, is_key);
    for (var i = thread; i < D; i += 64u) {
        head[i] = x[at + i];
    }
#if NORMED
    var sum = 0.0;
    for (var i = thread; i < D; i += 64u) {
        sum = fma(head[i], head[i], sum);
    }
    sums[thread] = sum;
    workgroupBarrier();
#for step in 0..6
    if thread < (32u >> ${step}u) {
        sums[thread] += sums[thread + (32u >> ${step}u)];
    }
    workgroupBarrier();
#end
    let scale = 1.0 / sqrt(sums[0] / f32(D) + args.eps);
    for (var i = thread; i < D; i += 64u) {
        head[i] = head[i] * scale * select(q_norm[i], k_norm[i], is_key);
    }
#end
    workgroupBarrier();
    let angle = positions[token] * 2u * args.half;
    for (var i = thread; i < args.half; i += 64u) {
        let cosine = table[angle + i];
        let sine = table[angle + args.half + i];
        let a = head[i];
        let b = head[i + args.half];
        head[i] = fma(a, cosine, -(b * sine));
        head[i + args.half] = fma(b, cosine, a * sine);
    }
    workgroupBarrier();
    if is_key {
        let to = ((page * args.heads + own) * ${PAGE}u + slot) * (D / 2u);
        for (var pair = thread; pair < D / 2u; pair += 64u) {
            keys[to + pair] = stored(head[2u * pair], head[2u * pair + 1u]);
        }
    } else {
        for (var i = thread; i < D; i += 64u) {
            x[at + i] = head[i];
        }
    }
}

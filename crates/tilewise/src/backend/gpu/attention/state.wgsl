struct Merged {
    keep: f32,
    take: f32,
    max: f32,
    sum: f32,
}

// Factors on two states' sums, and the state of both; an empty side changes nothing.
fn merge(max_a: f32, sum_a: f32, max_b: f32, sum_b: f32) -> Merged {
    if sum_b == 0.0 {
        return Merged(1.0, 0.0, max_a, sum_a);
    }
    if sum_a == 0.0 {
        return Merged(0.0, 1.0, max_b, sum_b);
    }
    let top = max(max_a, max_b);
    let keep = exp2(max_a - top);
    let take = exp2(max_b - top);
    return Merged(keep, take, top, fma(sum_b, take, sum_a * keep));
}

fn merge_out(a: vec2<f32>, keep: f32, b: vec2<f32>, take: f32) -> vec2<f32> {
    // An empty side holds zeros, or is multiplied by one.
    return fma(b, vec2<f32>(take), a * keep);
}

fn finish(sum: f32) -> f32 {
    return select(1.0 / sum, 0.0, sum == 0.0);
}

fn lse_of(top: f32, sum: f32) -> f32 {
    if sum == 0.0 {
        return bitcast<f32>(0xff800000u + (u32(sum)));
    }
    return (top + log2(sum)) * 0.6931471805599453;
}

#if OUT_F32
fn store(at: u32, value: vec2<f32>) { out[at] = value; }
#else
#if OUT_F16
fn store(at: u32, value: vec2<f32>) { out[at] = vec2<f16>(value); }
#else
fn nearest(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    if (bits & 0x7fffffffu) > 0x7f800000u {
        return 0x7fc0u;
    }
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
fn store(at: u32, value: vec2<f32>) { out[at] = nearest(value.x) | (nearest(value.y) << 16u); }
#end
#end

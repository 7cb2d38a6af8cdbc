#if NORM
// What kernels share that norm whole rows: norm.wgsl's arithmetic, by 32 threads a row.

// Squares of a row of vectors that begins at `source`, on to chains: a thread has four neighbouring ones and the four 128
// further on. Elements are loaded together; those from `at` on are `value_0` to `value_7`.
#block add_squares
#for u in 0..8
            let value_$u = x[source + min(at + ${u * 32}u, fours - 1u)];
#end
#for u in 0..8
            {
                // A chain that has ended adds zeros, which changes no bit.
                let value = select(vec4<f32>(), value_$u, at + ${u * 32}u < fours);
#if u % 2 == 0
                near = fma(value, value, near);
#else
                far = fma(value, value, far);
#end
            }
#end
#end

// The sum of 32 neighbours in the order of its tree.
fn tree(at: u32) -> f32 {
#for i in 0..16
    let a_$i = sums[at + ${i}u] + sums[at + ${i + 16}u];
#end
#for i in 0..8
    let b_$i = a_$i + a_${i + 8};
#end
#for i in 0..4
    let c_$i = b_$i + b_${i + 4};
#end
    return (c_0 + c_2) + (c_1 + c_3);
}

fn factor(sum: f32) -> f32 {
    return 1.0 / sqrt(sum / f32(args.inputs) + args.eps);
}
#end

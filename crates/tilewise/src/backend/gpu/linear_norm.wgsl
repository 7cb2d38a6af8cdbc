#if NORM
// What kernels share that norm whole rows: norm.wgsl's arithmetic from where 32 threads have added their chains.

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

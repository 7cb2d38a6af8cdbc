use super::*;

/// Every operation on fixed inputs, as bits.
struct Probe;

impl Kernel for Probe {
    type Output = Vec<u32>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7);
        let b: [f32; LANES] = std::array::from_fn(|i| 0.3 / (i as f32 + 0.7));
        let half: [half::f16; LANES] = std::array::from_fn(|i| half::f16::from_f32(a[i]));
        let brain: [half::bf16; LANES] = std::array::from_fn(|i| half::bf16::from_f32(a[i]));
        let mut pairs = [PairedBf16(0); LANES];
        for (lane, x) in brain.iter().enumerate() {
            pairs[paired(lane)] = PairedBf16(x.to_bits());
        }
        let mut bits = Vec::new();
        let mut out = [0.0f32; LANES];
        // SAFETY: every pointer is to an array of sixteen.
        let (va, vb) = unsafe { (s.load(a.as_ptr()), s.load(b.as_ptr())) };
        // SAFETY: as above.
        let loaded = unsafe {
            [s.load_f16(half.as_ptr()), s.load_bf16(brain.as_ptr()), s.load_paired_bf16(pairs.as_ptr())]
        };
        let computed = [
            s.add(va, vb),
            s.sub(va, vb),
            s.mul(va, vb),
            s.div(va, vb),
            s.fma(va, vb, va),
            s.max(va, vb),
            s.max(s.splat(-126.0), s.splat(f32::NAN)),
            s.keep_range(va, 3, 11, f32::NEG_INFINITY),
            s.keep_range(va, 0, 16, 0.0),
            s.exp2(s.mul(va, s.splat(9.0))),
        ];
        for v in loaded.into_iter().chain(computed) {
            // SAFETY: `out` has sixteen elements.
            unsafe { s.store(out.as_mut_ptr(), v) };
            bits.extend(out.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }));
        }
        let narrowed = s.mul(va, s.splat(1.001));
        let (mut halves, mut brains) = ([half::f16::ZERO; LANES], [half::bf16::ZERO; LANES]);
        // SAFETY: both arrays have sixteen elements.
        unsafe {
            s.store_f16(halves.as_mut_ptr(), narrowed);
            s.store_bf16(brains.as_mut_ptr(), narrowed);
        }
        bits.extend(halves.map(|x| u32::from(x.to_bits())));
        bits.extend(brains.map(|x| u32::from(x.to_bits())));
        bits.extend([s.reduce_max(va), s.reduce_sum(s.mul(va, vb))].map(f32::to_bits));
        let mut square = [0.0f32; LANES * LANES];
        let rows: [S::V; LANES] = std::array::from_fn(|i| s.mul(va, s.splat(i as f32)));
        // SAFETY: `square` holds sixteen rows of sixteen.
        unsafe { s.store_transposed(&rows, square.as_mut_ptr(), LANES) };
        bits.extend(square.map(f32::to_bits));
        let mut columns = [0.0f32; 6 * LANES + 2];
        let mut eight = [s.splat(9.0); 8];
        eight[..6].copy_from_slice(&rows[1..7]);
        // SAFETY: sixteen columns of eight elements, six apart.
        unsafe { s.store_columns(&eight, columns.as_mut_ptr(), 6) };
        bits.extend(columns.map(f32::to_bits));
        bits
    }
}

#[test]
fn every_instruction_set_returns_the_same_bits() {
    let want = Level::Scalar(Scalar).run(Probe);
    for level in Level::available() {
        assert_eq!(level.run(Probe), want, "{}", level.name());
    }
}

#[test]
fn vector_exp2_is_the_scalar_one() {
    struct Exp2([f32; LANES]);
    impl Kernel for Exp2 {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            // SAFETY: both arrays have sixteen elements.
            unsafe { s.store(out.as_mut_ptr(), s.exp2(s.load(self.0.as_ptr()))) };
            out
        }
    }
    for level in Level::available() {
        for step in 0..500 {
            let x: [f32; LANES] = std::array::from_fn(|i| (i * 500 + step) as f32 * -0.016_37 + 5.0);
            let got = level.run(Exp2(x));
            assert_eq!(
                got.map(f32::to_bits),
                x.map(|x| crate::softmax::exp2(x).to_bits()),
                "{}",
                level.name()
            );
        }
    }
}

#[test]
fn pairing_permutes_each_group_of_sixteen() {
    let mut places: Vec<usize> = (0..32).map(paired).collect();
    assert_eq!(&places[..3], [0, 2, 4]);
    assert_eq!(places[8], 1);
    places.sort_unstable();
    assert_eq!(places, (0..32).collect::<Vec<_>>());
}

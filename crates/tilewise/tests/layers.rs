//! Laws of linear layers and of the operations on rows, compared in bits: a row is the same alone and among others.
//!
//! On the processor, linear layers are the reference in every bit. On a GPU they are not: 16-bit weights are held in f16
//! times a power of two for each row, and matrix units take activations in f16. There the oracle and its tolerances hold.
#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::Tested;
use testkit::oracle;
use testkit::random::Random;
use testkit::tolerance::{self, Precision};
use tilewise::backend::cpu::CpuDevice;
use tilewise::{DType, Device, HeadSpan, HostTensor, Linear, NormedRows, Tensor, reference};

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

fn pack(
    device: &dyn Device,
    shape: &[usize; 2],
    weight: &[f32],
    bias: Option<&[f32]>,
    dtype: DType,
) -> Linear {
    device.pack_linear(&[HostTensor::f32(shape, weight).unwrap()], bias, dtype).unwrap()
}

fn f32s(device: &dyn Device, shape: &[usize], values: &[f32]) -> Tensor {
    device.upload(HostTensor::f32(shape, values).unwrap()).unwrap()
}

/// A product of rows onto what `onto` holds, or onto nothing.
fn product(device: &dyn Device, weight: &Linear, x: &[f32], onto: Option<&[f32]>) -> Vec<f32> {
    let rows = x.len() / weight.in_features;
    let x = f32s(device, &[rows, weight.in_features], x);
    let shape = [rows, weight.out_features];
    let mut out = f32s(device, &shape, onto.unwrap_or(&vec![f32::NAN; rows * weight.out_features]));
    match onto {
        Some(_) => device.linear_add(weight, &x, &mut out).unwrap(),
        None => device.linear(weight, &x, &mut out).unwrap(),
    }
    device.download(&out).unwrap()
}

/// `onto + x W^T + bias` where the chains begin with `onto`.
fn chains(weight: &[f32], bias: Option<&[f32]>, x: &[f32], inputs: usize, onto: &[f32]) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let output = |at: usize| {
        let (x, w) = (&x[at / outputs * inputs..][..inputs], &weight[at % outputs * inputs..][..inputs]);
        let chain = x.iter().zip(w).fold(onto[at], |sum, (x, w)| x.mul_add(*w, sum));
        bias.map_or(chain, |bias| chain + bias[at % outputs])
    };
    (0..onto.len()).map(output).collect()
}

/// Rows below, at and above register tiles, and above the block of rows that is packed at once.
const ROWS: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 60, 500];

/// `[in, out]`, at and beside multiples of 4, 16, 128 (a thread's panels) and 256 (a slice of inputs).
const SHAPES: [(usize, usize); 6] = [(1, 1), (37, 50), (64, 16), (256, 144), (261, 33), (515, 17)];

/// A layer, with rows to run through it and to add to.
struct Layer {
    inputs: usize,
    outputs: usize,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
    onto: Vec<f32>,
}

impl Layer {
    fn new(seed: usize, (inputs, outputs): (usize, usize), precision: Precision, rows: usize) -> Self {
        let mut random = Random::new(seed as u64);
        let weight = random.normals(inputs * outputs).into_iter().map(|x| precision.round(x)).collect();
        let bias = seed.is_multiple_of(2).then(|| random.normals(outputs));
        let (x, onto) = (random.normals(rows * inputs), random.normals(rows * outputs));
        Self { inputs, outputs, weight, bias, x, onto }
    }

    fn pack(&self, device: &dyn Device, precision: Precision) -> Linear {
        let shape = [self.outputs, self.inputs];
        pack(device, &shape, &self.weight, self.bias.as_deref(), common::dtype(precision))
    }

    /// The outputs in f64, and for each the sum of the magnitudes of what is added.
    fn oracle(&self) -> (Vec<f64>, Vec<f64>) {
        let abs = |values: &[f32]| values.iter().map(|x| x.abs()).collect::<Vec<f32>>();
        let bias = self.bias.as_deref().map(abs);
        let want = oracle::linear(&self.weight, self.bias.as_deref(), &self.x, self.inputs);
        (want, oracle::linear(&abs(&self.weight), bias.as_deref(), &abs(&self.x), self.inputs))
    }
}

#[test]
fn linear_rows_have_the_bits_of_the_reference_in_any_number() {
    for Tested { name, device, .. } in &common::cpus() {
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            for precision in Precision::ALL {
                let layer = Layer::new(seed, shape, precision, 500);
                let Layer { inputs, outputs, weight, bias, x, onto } = &layer;
                let linear = layer.pack(&**device, precision);
                let mut want = vec![0.0; 500 * outputs];
                for (x, want) in x.chunks(*inputs).zip(want.chunks_mut(*outputs)) {
                    reference::linear(weight, bias.as_deref(), x, want);
                }
                let added = chains(weight, bias.as_deref(), x, *inputs, onto);
                for rows in ROWS {
                    let what = format!("{name} {rows} rows of {inputs} to {outputs} in {precision:?}");
                    let (x, onto) = (&x[..rows * inputs], &onto[..rows * outputs]);
                    let got = product(&**device, &linear, x, None);
                    assert!(bits(&got) == bits(&want[..rows * outputs]), "{what}");
                    let got = product(&**device, &linear, x, Some(onto));
                    assert!(bits(&got) == bits(&added[..rows * outputs]), "{what}, added");
                }
                for (want, oracle) in want[..60 * outputs].iter().zip(layer.oracle().0) {
                    let error = (f64::from(*want) - oracle).abs();
                    assert!(error <= tolerance::chain(inputs + 1), "{inputs}: {want} and {oracle}");
                }
            }
        }
    }
}

/// Rows at and beside the tiles of a GPU.
const GPU_ROWS: [usize; 7] = [1, 2, 15, 16, 17, 60, 130];

#[test]
fn linear_rows_on_a_gpu_are_near_the_oracle_and_have_the_same_bits_in_any_number() {
    for gpu in common::gpus() {
        let mut largest = 0.0f64;
        for (seed, shape) in SHAPES.into_iter().enumerate() {
            for precision in Precision::ALL {
                let layer = Layer::new(seed, shape, precision, 130);
                let linear = layer.pack(&*gpu.device, precision);
                let what = format!("{} {shape:?} in {precision:?}", gpu.name);
                let (want, magnitudes) = layer.oracle();
                for onto in [None, Some(&layer.onto[..])] {
                    let all = product(&*gpu.device, &linear, &layer.x, onto);
                    for (at, got) in all.iter().enumerate() {
                        let before = onto.map_or(0.0, |onto| f64::from(onto[at]));
                        let allowed = if gpu.matrices && precision != Precision::F32 {
                            tolerance::linear_by_matrix_units(magnitudes[at] + before.abs(), shape.0 + 2)
                        } else {
                            tolerance::chain(shape.0 + 2)
                        };
                        let error = (f64::from(*got) - want[at] - before).abs() / allowed;
                        assert!(
                            error <= 1.0,
                            "{what} element {at}: {got} is off by {error} of the tolerance"
                        );
                        largest = largest.max(error);
                    }
                    for rows in GPU_ROWS {
                        let onto = onto.map(|onto| &onto[..rows * shape.1]);
                        let got = product(&*gpu.device, &linear, &layer.x[..rows * shape.0], onto);
                        assert!(bits(&got) == bits(&all[..rows * shape.1]), "{what}: {rows} rows");
                    }
                }
            }
        }
        println!("{}: linear layers, worst {largest:.3} of the tolerance", gpu.name);
    }
}

#[test]
fn bf16_weights_of_any_magnitude_keep_their_accuracy_on_a_gpu() {
    const EXPONENTS: [i32; 5] = [-110, -30, 0, 30, 110];
    for gpu in common::gpus() {
        let mut layer = Layer::new(1, (100, EXPONENTS.len()), Precision::Bf16, 20);
        for (row, exponent) in layer.weight.chunks_mut(100).zip(EXPONENTS) {
            row.iter_mut().for_each(|x| *x *= 2.0f32.powi(exponent));
        }
        let got = product(&*gpu.device, &layer.pack(&*gpu.device, Precision::Bf16), &layer.x, None);
        let (want, magnitudes) = layer.oracle();
        for (at, got) in got.iter().enumerate() {
            let exponent = EXPONENTS[at % EXPONENTS.len()];
            let unit = 2.0f64.powi(exponent);
            let allowed = if gpu.matrices {
                tolerance::linear_by_matrix_units(magnitudes[at] / unit, 101)
            } else {
                tolerance::chain(101)
            };
            let error = (f64::from(*got) - want[at]).abs() / unit;
            assert!(error <= allowed, "{} 2^{exponent}: {got}, not {}", gpu.name, want[at]);
        }
    }
}

#[test]
fn any_number_of_threads_gives_linear_layers_the_same_bits() {
    let mut random = Random::new(3);
    let (weight, x) = (random.normals(300 * 290), random.normals(70 * 290));
    let run = |threads| {
        let device = CpuDevice::new(Some(threads)).unwrap();
        bits(&product(&device, &pack(&device, &[300, 290], &weight, None, DType::Bf16), &x, None))
    };
    let want = run(1);
    assert!([2, 3, 5].into_iter().all(|threads| run(threads) == want));
}

#[test]
fn matrices_packed_under_each_other_are_one_matrix() {
    each_device(|Tested { name, device, .. }| {
        let device = &**device;
        let mut random = Random::new(4);
        let (weight, x) = (random.normals(45 * 30), random.normals(3 * 30));
        let one = pack(device, &[45, 30], &weight, None, DType::F16);
        let parts =
            [HostTensor::f32(&[19, 30], &weight[..19 * 30]), HostTensor::f32(&[26, 30], &weight[19 * 30..])];
        let two = device.pack_linear(&parts.map(Result::unwrap), None, DType::F16).unwrap();
        assert_eq!(bits(&product(device, &one, &x, None)), bits(&product(device, &two, &x, None)), "{name}");
    });
}

#[test]
fn embeddings_are_the_rows_of_the_table_exactly() {
    each_device(|Tested { name, device, .. }| {
        for precision in Precision::ALL {
            let table: Vec<f32> =
                Random::new(5).normals(35 * 21).into_iter().map(|x| precision.round(x)).collect();
            let packed = pack(&**device, &[35, 21], &table, None, common::dtype(precision));
            let ids = [34u32, 0, 16, 15, 0, 7];
            let want: Vec<f32> =
                ids.iter().flat_map(|id| table[*id as usize * 21..][..21].to_vec()).collect();
            let ids = device.upload(HostTensor::u32(&[6], &ids).unwrap()).unwrap();
            let mut out = device.alloc(&[6, 21], DType::F32).unwrap();
            device.embed(&packed, &ids, &mut out).unwrap();
            assert_eq!(bits(&device.download(&out).unwrap()), bits(&want), "{name} {precision:?}");
        }
    });
}

fn each_device(run: impl FnMut(&Tested)) {
    common::cpus().iter().chain(common::gpus()).for_each(run);
}

/// Runs an operation on all rows together and on every row alone, which must agree in bits, on every device; the results
/// of instruction sets must agree among each other, and all must be near `want`. Returns what each device made.
fn by_rows(
    x: &[f32],
    len: usize,
    want: &[f32],
    run: impl Fn(&dyn Device, &[f32], usize) -> Vec<f32>,
) -> Vec<Vec<f32>> {
    let mut results: Vec<Vec<f32>> = Vec::new();
    each_device(|Tested { name, device, gpu, .. }| {
        let together = run(&**device, x, 0);
        let alone = x.chunks(len).enumerate().flat_map(|(row, x)| run(&**device, x, row));
        assert!(bits(&together) == bits(&alone.collect::<Vec<_>>()), "{name}: rows of {len}");
        if let (false, Some(other)) = (gpu, results.first()) {
            assert!(
                bits(&together) == bits(other),
                "{name}: rows of {len} differ from another instruction set's"
            );
        }
        assert_close(&together, want, &format!("{name}: rows of {len}"));
        results.push(together);
    });
    results
}

fn assert_close(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{what}, element {at}: {got}, not {want}");
    }
}

/// Rows that one thread does, and rows that several do.
const LENS: [(usize, usize); 5] = [(3, 1), (5, 16), (4, 50), (7, 128), (70, 263)];

#[test]
fn rms_norm_is_the_reference_row_by_row() {
    for (rows, len) in LENS {
        let mut random = Random::new(len as u64);
        let (x, weight) = (random.normals(rows * len), random.normals(len));
        let mut want = vec![0.0; x.len()];
        let pairs = x.chunks(len).zip(want.chunks_mut(len));
        pairs.for_each(|(x, want)| reference::rms_norm(x, &weight, 1e-6, want));
        by_rows(&x, len, &want, |device, x, _| {
            let (x, weight) = (f32s(device, &[x.len() / len, len], x), f32s(device, &[len], &weight));
            let mut out = device.alloc(x.shape(), DType::F32).unwrap();
            device.rms_norm(&x, &weight, 1e-6, &mut out).unwrap();
            device.download(&out).unwrap()
        });
    }
}

#[test]
fn norms_and_rotations_of_heads_touch_their_span_only() {
    for (rows, dim) in [(3, 8), (5, 48), (40, 130)] {
        let span = HeadSpan { offset: 5, num_heads: 3, head_dim: dim };
        let (len, rotary) = (3 * dim + 12, dim / 4 * 2);
        let mut random = Random::new(dim as u64);
        let (x, weight, table) =
            (random.normals(rows * len), random.normals(dim), random.normals(9 * rotary));
        let position = |row: usize| (row * 4 % 9) as u32;
        let mut want = x.clone();
        for (row, own) in want.chunks_mut(len).enumerate() {
            for head in own[span.offset..span.offset + 3 * dim].chunks_mut(dim) {
                let x = head.to_vec();
                reference::rms_norm(&x, &weight, 1e-6, head);
                reference::rope(head, &table[position(row) as usize * rotary..][..rotary]);
            }
        }
        let results = by_rows(&x, len, &want, |device, x, row| {
            let rows = x.len() / len;
            let mut x = f32s(device, &[rows, len], x);
            device.rms_norm_heads(&mut x, span, &f32s(device, &[dim], &weight), 1e-6).unwrap();
            let positions: Vec<u32> = (row..row + rows).map(position).collect();
            let positions = device.upload(HostTensor::u32(&[rows], &positions).unwrap()).unwrap();
            device.rope(&mut x, span, &f32s(device, &[9, rotary], &table), &positions).unwrap();
            device.download(&x).unwrap()
        });
        for (got, x) in results.iter().flat_map(|got| got.chunks(len).zip(x.chunks(len))) {
            let outside = |row: &[f32]| bits(&[&row[..5], &row[5 + 3 * dim..]].concat());
            assert_eq!(outside(got), outside(x), "elements outside the span");
        }
    }
}

#[test]
fn silu_mul_is_the_reference_row_by_row() {
    for (rows, len) in LENS {
        let mut random = Random::new(len as u64);
        let mut x: Vec<f32> = random.normals(rows * 2 * len).into_iter().map(|x| x * 5.0).collect();
        x[..3 * len.min(2)].fill(-100.0);
        let mut want = vec![0.0; rows * len];
        for (x, want) in x.chunks(2 * len).zip(want.chunks_mut(len)) {
            reference::silu_mul(&x[..len], &x[len..], want);
        }
        by_rows(&x, 2 * len, &want, |device, x, _| {
            let gate_up = f32s(device, &[x.len() / len / 2, 2 * len], x);
            let mut out = device.alloc(&[gate_up.rows(), len], DType::F32).unwrap();
            device.silu_mul(&gate_up, &mut out).unwrap();
            device.download(&out).unwrap()
        });
    }
}

#[test]
fn a_gated_product_is_its_product_and_activation_with_the_same_bits_in_any_number_of_rows() {
    each_device(|Tested { name, device, .. }| {
        for (inputs, halves, dtype) in
            [(64, 48, DType::Bf16), (96, 160, DType::F16), (40, 48, DType::F16), (64, 20, DType::F32)]
        {
            let mut random = Random::new(inputs as u64);
            let weight =
                pack(&**device, &[2 * halves, inputs], &random.normals(2 * halves * inputs), None, dtype);
            let rows = 70;
            let x = random.normals(rows * inputs);
            let input = device.linear_input(dtype, inputs);
            let gated = |x: &[f32], fused: bool| {
                let rows = x.len() / inputs;
                let x = f32s(&**device, &[rows, inputs], x);
                let mut gate_up = device.alloc(&[rows, 2 * halves], DType::F32).unwrap();
                let mut out = device.alloc(&[rows, halves], input).unwrap();
                if fused {
                    device.linear_silu_mul(&weight, &x, &mut gate_up, &mut out).unwrap();
                } else {
                    device.linear(&weight, &x, &mut gate_up).unwrap();
                    device.silu_mul(&gate_up, &mut out).unwrap();
                }
                device.download(&out).unwrap()
            };
            let what = format!("{name}: {inputs} to 2 x {halves} in {dtype}");
            let whole = gated(&x, true);
            let apart = gated(&x, false);
            for (at, (a, b)) in whole.iter().zip(&apart).enumerate() {
                // One rounding of the output's type.
                let near = (a - b).abs() <= b.abs() * if input == DType::F16 { 1e-3 } else { 1e-5 };
                assert!(near, "{what}: element {at} is {a}, not {b}");
            }
            for count in [1, 9, 17, 40] {
                let some = gated(&x[..count * inputs], true);
                assert!(bits(&some) == bits(&whole[..count * halves]), "{what}: {count} rows");
            }
        }
    });
}

/// Rows with an outlier each, of magnitudes far apart.
fn rows_with_outliers(random: &mut Random, rows: usize, len: usize) -> Vec<f32> {
    let mut x = random.normals(rows * len);
    for (row, x) in x.chunks_mut(len).enumerate() {
        x[row * 7 % len] *= 1000.0;
        x.iter_mut().for_each(|x| *x *= 10.0f32.powi(row as i32 % 5 * 3 - 6));
    }
    x
}

/// A product of the norms of rows, and the same with the activation of its halves: each as one operation, or after a
/// norm.
fn products_of_norms(
    device: &dyn Device,
    weight: &Linear,
    x: &[f32],
    norm: &Tensor,
    one: bool,
) -> [Vec<f32>; 2] {
    let (inputs, outputs) = (weight.in_features, weight.out_features);
    let rows = x.len() / inputs;
    let input = device.linear_input(weight.dtype, inputs);
    let x = f32s(device, &[rows, inputs], x);
    let mut normed = device.alloc(&[rows, inputs], input).unwrap();
    let mut out = f32s(device, &[rows, outputs], &vec![f32::NAN; rows * outputs]);
    let mut room = device.alloc(&[rows, outputs], DType::F32).unwrap();
    let mut gated = device.alloc(&[rows, outputs / 2], input).unwrap();
    if one {
        let normed_rows = NormedRows { x: &x, weight: norm, eps: 1e-6 };
        device.norm_linear(&normed_rows, &mut normed, weight, &mut out).unwrap();
        device.norm_linear_silu_mul(&normed_rows, &mut normed, weight, &mut room, &mut gated).unwrap();
    } else {
        device.rms_norm(&x, norm, 1e-6, &mut normed).unwrap();
        device.linear(weight, &normed, &mut out).unwrap();
        device.linear_silu_mul(weight, &normed, &mut room, &mut gated).unwrap();
    }
    [out, gated].map(|tensor| device.download(&tensor).unwrap())
}

#[test]
fn a_product_of_norms_has_the_bits_of_the_norm_and_the_product() {
    each_device(|tested| {
        // A processor that plays matrix units takes seconds for each kernel: there the products that keep to few of them.
        let slow = tested.software && tested.matrices;
        let (shapes, most) = if slow { (&NORMED_SHAPES[..4], 9) } else { (&NORMED_SHAPES[..], 17) };
        println!("{}: {} of {} shapes, {most} rows", tested.name, shapes.len(), NORMED_SHAPES.len());
        for shape in shapes {
            for precision in Precision::ALL {
                norms_and_products_agree(tested, *shape, precision, most);
            }
        }
    });
}

/// `[in, out]`, beside the 256 chains of a norm's sum, and multiples of 32, which matrix units take, or none.
const NORMED_SHAPES: [(usize, usize); 7] =
    [(120, 70), (256, 34), (1056, 40), (2080, 20), (1, 6), (1000, 40), (1024, 96)];

fn norms_and_products_agree(tested: &Tested, shape: (usize, usize), precision: Precision, most: usize) {
    let (inputs, outputs) = shape;
    let (Tested { name, .. }, device) = (tested, &*tested.device);
    let mut random = Random::new(inputs as u64);
    let matrix = random.normals(outputs * inputs);
    let bias = (precision == Precision::F16).then(|| random.normals(outputs));
    let weight = pack(device, &[outputs, inputs], &matrix, bias.as_deref(), common::dtype(precision));
    let norm = f32s(device, &[inputs], &random.normals(inputs));
    let x = rows_with_outliers(&mut random, most, inputs);
    let want = products_of_norms(device, &weight, &x, &norm, false);
    for rows in 1..=most {
        let what = format!("{name}: {rows} rows of {inputs} to {outputs} in {precision:?}");
        let got = products_of_norms(device, &weight, &x[..rows * inputs], &norm, true);
        for (got, want) in got.iter().zip(&want) {
            assert!(got.iter().all(|x| x.is_finite()), "{what}");
            assert!(bits(got) == bits(&want[..got.len()]), "{what}");
        }
    }
}

#[test]
fn gathered_rows_are_exact() {
    each_device(|Tested { name, device, gpu, .. }| {
        let device = &**device;
        let x = Random::new(6).normals(9 * 7);
        let mut out = device.alloc(&[4, 7], DType::F32).unwrap();
        device.gather_rows(&f32s(device, &[9, 7], &x), &[8, 0, 3, 3], &mut out).unwrap();
        let want: Vec<f32> = [8, 0, 3, 3].iter().flat_map(|row: &usize| x[row * 7..][..7].to_vec()).collect();
        assert_eq!(bits(&device.download(&out).unwrap()), bits(&want), "{name}");
        // What only products take is of f16 on some.
        if *gpu {
            let halves: Vec<half::f16> = x.iter().map(|&x| half::f16::from_f32(x)).collect();
            let x = HostTensor::new(&[9, 7], DType::F16, bytemuck::cast_slice(&halves)).unwrap();
            let mut out = device.alloc(&[4, 7], DType::F16).unwrap();
            device.gather_rows(&device.upload(x).unwrap(), &[8, 0, 3, 3], &mut out).unwrap();
            let want: Vec<f32> = want.iter().map(|&x| half::f16::from_f32(x).to_f32()).collect();
            assert_eq!(bits(&device.download(&out).unwrap()), bits(&want), "{name} f16");
        }
    });
}

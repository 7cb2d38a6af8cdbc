//! Laws of linear layers and of the operations on rows, compared in bits: a row is the same alone and among others.
#![allow(missing_docs)]

mod common;

use testkit::oracle;
use testkit::random::Random;
use testkit::tolerance::{self, Precision};
use tilewise::backend::cpu::CpuDevice;
use tilewise::{DType, Device, HeadSpan, HostTensor, Linear, Tensor, reference};

fn devices() -> Vec<(&'static str, CpuDevice)> {
    let open = |set| (set, CpuDevice::with_instruction_set(Some(2), set).unwrap());
    CpuDevice::instruction_sets().into_iter().map(open).collect()
}

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

#[test]
fn linear_rows_have_the_bits_of_the_reference_in_any_number() {
    for (set, device) in devices() {
        for (seed, (inputs, outputs)) in SHAPES.into_iter().enumerate() {
            for precision in Precision::ALL {
                let mut random = Random::new(seed as u64);
                let weight: Vec<f32> =
                    random.normals(inputs * outputs).into_iter().map(|x| precision.round(x)).collect();
                let bias = (seed % 2 == 0).then(|| random.normals(outputs));
                let linear =
                    pack(&device, &[outputs, inputs], &weight, bias.as_deref(), common::dtype(precision));
                let x = random.normals(500 * inputs);
                let onto = random.normals(500 * outputs);
                let mut want = vec![0.0; 500 * outputs];
                for (x, want) in x.chunks(inputs).zip(want.chunks_mut(outputs)) {
                    reference::linear(&weight, bias.as_deref(), x, want);
                }
                let added = chains(&weight, bias.as_deref(), &x, inputs, &onto);
                for rows in ROWS {
                    let what = format!("{set} {rows} rows of {inputs} to {outputs} in {precision:?}");
                    let (x, onto) = (&x[..rows * inputs], &onto[..rows * outputs]);
                    let got = product(&device, &linear, x, None);
                    assert!(bits(&got) == bits(&want[..rows * outputs]), "{what}");
                    let got = product(&device, &linear, x, Some(onto));
                    assert!(bits(&got) == bits(&added[..rows * outputs]), "{what}, added");
                }
                let oracle = oracle::linear(&weight, bias.as_deref(), &x[..60 * inputs], inputs);
                for (want, oracle) in want.iter().zip(oracle) {
                    let error = (f64::from(*want) - oracle).abs();
                    assert!(error <= tolerance::chain(inputs + 1), "{inputs}: {want} and {oracle}");
                }
            }
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
    let device = CpuDevice::new(Some(2)).unwrap();
    let mut random = Random::new(4);
    let (weight, x) = (random.normals(45 * 30), random.normals(3 * 30));
    let one = pack(&device, &[45, 30], &weight, None, DType::F16);
    let parts =
        [HostTensor::f32(&[19, 30], &weight[..19 * 30]), HostTensor::f32(&[26, 30], &weight[19 * 30..])];
    let two = device.pack_linear(&parts.map(Result::unwrap), None, DType::F16).unwrap();
    assert_eq!(bits(&product(&device, &one, &x, None)), bits(&product(&device, &two, &x, None)));
}

#[test]
fn embeddings_are_the_rows_of_the_table_exactly() {
    for (set, device) in devices() {
        for precision in Precision::ALL {
            let table: Vec<f32> =
                Random::new(5).normals(35 * 21).into_iter().map(|x| precision.round(x)).collect();
            let packed = pack(&device, &[35, 21], &table, None, common::dtype(precision));
            let ids = [34u32, 0, 16, 15, 0, 7];
            let want: Vec<f32> =
                ids.iter().flat_map(|id| table[*id as usize * 21..][..21].to_vec()).collect();
            let ids = device.upload(HostTensor::u32(&[6], &ids).unwrap()).unwrap();
            let mut out = device.alloc(&[6, 21], DType::F32).unwrap();
            device.embed(&packed, &ids, &mut out).unwrap();
            assert_eq!(bits(&device.download(&out).unwrap()), bits(&want), "{set} {precision:?}");
        }
    }
}

/// Runs an operation on all rows together, on every row alone and on every instruction set; all must agree in bits.
/// Returns the result.
fn by_rows(x: &[f32], len: usize, run: impl Fn(&dyn Device, &[f32], usize) -> Vec<f32>) -> Vec<f32> {
    let mut all = Vec::new();
    for (set, device) in devices() {
        let together = run(&device, x, 0);
        let alone = x.chunks(len).enumerate().flat_map(|(row, x)| run(&device, x, row));
        assert!(bits(&together) == bits(&alone.collect::<Vec<_>>()), "{set}: rows of {len}");
        all.push(together);
    }
    assert!(all.windows(2).all(|pair| bits(&pair[0]) == bits(&pair[1])), "instruction sets, rows of {len}");
    all.swap_remove(0)
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "element {at}: {got}, not {want}");
    }
}

/// Rows that one thread does, and rows that several do.
const LENS: [(usize, usize); 5] = [(3, 1), (5, 16), (4, 50), (7, 128), (70, 263)];

#[test]
fn rms_norm_is_the_reference_row_by_row() {
    for (rows, len) in LENS {
        let mut random = Random::new(len as u64);
        let (x, weight) = (random.normals(rows * len), random.normals(len));
        let got = by_rows(&x, len, |device, x, _| {
            let (x, weight) = (f32s(device, &[x.len() / len, len], x), f32s(device, &[len], &weight));
            let mut out = device.alloc(x.shape(), DType::F32).unwrap();
            device.rms_norm(&x, &weight, 1e-6, &mut out).unwrap();
            device.download(&out).unwrap()
        });
        let mut want = vec![0.0; x.len()];
        let pairs = x.chunks(len).zip(want.chunks_mut(len));
        pairs.for_each(|(x, want)| reference::rms_norm(x, &weight, 1e-6, want));
        assert_close(&got, &want, 1e-5);
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
        let got = by_rows(&x, len, |device, x, row| {
            let rows = x.len() / len;
            let mut x = f32s(device, &[rows, len], x);
            device.rms_norm_heads(&mut x, span, &f32s(device, &[dim], &weight), 1e-6).unwrap();
            let positions: Vec<u32> = (row..row + rows).map(position).collect();
            let positions = device.upload(HostTensor::u32(&[rows], &positions).unwrap()).unwrap();
            device.rope(&mut x, span, &f32s(device, &[9, rotary], &table), &positions).unwrap();
            device.download(&x).unwrap()
        });
        let mut want = x.clone();
        for (row, own) in want.chunks_mut(len).enumerate() {
            for head in own[span.offset..span.offset + 3 * dim].chunks_mut(dim) {
                let x = head.to_vec();
                reference::rms_norm(&x, &weight, 1e-6, head);
                reference::rope(head, &table[position(row) as usize * rotary..][..rotary]);
            }
        }
        assert_close(&got, &want, 1e-5);
        for (got, x) in got.chunks(len).zip(x.chunks(len)) {
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
        let got = by_rows(&x, 2 * len, |device, x, _| {
            let gate_up = f32s(device, &[x.len() / len / 2, 2 * len], x);
            let mut out = device.alloc(&[gate_up.rows(), len], DType::F32).unwrap();
            device.silu_mul(&gate_up, &mut out).unwrap();
            device.download(&out).unwrap()
        });
        let mut want = vec![0.0; rows * len];
        for (x, want) in x.chunks(2 * len).zip(want.chunks_mut(len)) {
            reference::silu_mul(&x[..len], &x[len..], want);
        }
        assert_close(&got, &want, 1e-5);
    }
}

#[test]
fn gathered_rows_are_exact() {
    let device = CpuDevice::new(Some(2)).unwrap();
    let x = Random::new(6).normals(9 * 7);
    let mut out = device.alloc(&[4, 7], DType::F32).unwrap();
    device.gather_rows(&f32s(&device, &[9, 7], &x), &[8, 0, 3, 3], &mut out).unwrap();
    let want: Vec<f32> = [8, 0, 3, 3].iter().flat_map(|row: &usize| x[row * 7..][..7].to_vec()).collect();
    assert_eq!(bits(&device.download(&out).unwrap()), bits(&want));
}

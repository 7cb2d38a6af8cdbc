//! Every device x every kernel x every case, against the f64 oracle.
#![allow(missing_docs, clippy::print_stdout)]

mod common;

use testkit::cases::{self, AttentionCase, Data};
use testkit::oracle::{self, Head};
use testkit::tolerance::{self, Precision};
use tilewise::Error;
use tilewise::backend::cpu::CpuDevice;

use common::Tested;

/// The error that a device may make in a case over so many keys.
fn allowed(tested: &Tested, case: &AttentionCase, keys: usize) -> f64 {
    let row = match case.precision {
        Precision::F16 | Precision::Bf16 if tested.matrices => tolerance::attention_by_matrix_units,
        _ => tolerance::attention,
    };
    row(case.q_precision(), keys, case.head_dim)
}

/// The largest error of a case relative to its tolerance, and where it is.
fn worst(tested: &Tested, case: &AttentionCase, data: &Data, got: &common::Outcome) -> (f64, String) {
    let group = case.num_qo_heads / case.num_kv_heads;
    let mut worst = (0.0, String::new());
    for (sequence, (_, keys)) in case.lens.iter().enumerate() {
        let allowed = allowed(tested, case, *keys);
        for head in 0..case.num_qo_heads {
            let (out, lse) = oracle::attention(&Head {
                q: &data.q[sequence][head],
                k: &data.k[sequence][head / group],
                v: &data.v[sequence][head / group],
                head_dim: case.head_dim,
                value_dim: case.value_dim,
                scale: 1.0 / (case.head_dim as f64).sqrt(),
                visible: case.visible,
            });
            let pairs = out.iter().zip(&got.out[sequence][head]).map(|pair| ("out", pair));
            let pairs = pairs.chain(lse.iter().zip(&got.lse[sequence][head]).map(|pair| ("lse", pair)));
            for (index, (what, (want, got))) in pairs.enumerate() {
                let scale = if what == "lse" { want.abs().max(1.0) } else { 1.0 };
                let same = *want == f64::from(*got);
                let error = if same { 0.0 } else { (want - f64::from(*got)).abs() / allowed / scale };
                if error.is_nan() || error > worst.0 {
                    let error = if error.is_nan() { f64::INFINITY } else { error };
                    let place =
                        format!("sequence {sequence} head {head} {what} {index}: want {want}, got {got}");
                    worst = (error, place);
                }
            }
        }
    }
    worst
}

/// Runs every kernel of a device on every case and prints how close it came.
fn conform(tested: &Tested, cases: &[AttentionCase]) {
    let name = &tested.name;
    for kernel in tested.device.policy().kernels {
        let (mut run, mut refused, mut largest) = (0, 0, 0.0f64);
        for (seed, case) in cases.iter().enumerate() {
            let data = case.data(seed as u64);
            match common::run(&*tested.device, case, &data, Some(kernel.name)) {
                Err(Error::Unsupported { .. }) => refused += 1,
                Err(error) => panic!("{name} {} {case:?}: {error}", kernel.name),
                Ok(got) => {
                    let (error, place) = worst(tested, case, &data, &got);
                    assert!(
                        error <= 1.0,
                        "{name} {} {case:?}: {error} of the tolerance, {place}",
                        kernel.name
                    );
                    largest = largest.max(error);
                    run += 1;
                }
            }
        }
        assert!(run > 0, "{name} {} ran no case", kernel.name);
        println!(
            "{name} {}: {run} cases, {refused} refused, worst {largest:.3} of the tolerance",
            kernel.name
        );
    }
}

/// Every `stride`-th case. Shapes come in groups of 4 or 5 types and layouts: a stride that has no factor in common with
/// either gives all of them their turn.
fn some(stride: usize) -> Vec<AttentionCase> {
    cases::attention().into_iter().step_by(stride).collect()
}

#[test]
fn every_kernel_of_every_instruction_set_agrees_with_the_oracle() {
    // An emulator is several times slower than a machine.
    let cases = some(if cfg!(tilewise_emulated) { 3 } else { 1 });
    println!("{} of {} cases", cases.len(), some(1).len());
    for cpu in common::cpus() {
        conform(&cpu, &cases);
    }
    for set in ["avx512", "avx2", "neon"].iter().filter(|set| !CpuDevice::instruction_sets().contains(set)) {
        println!("{set}: skipped, this machine does not have it");
    }
}

#[test]
fn every_kernel_of_every_gpu_agrees_with_the_oracle() {
    for gpu in common::gpus() {
        // Nearly every case compiles kernels of its own, which takes a processor that plays a GPU half a second; where
        // it plays matrix units too, seconds, and minutes for wide heads: few cases with narrow ones then.
        let mut cases = some(match (gpu.software, gpu.matrices) {
            (false, _) => 1,
            (true, false) => 13,
            (true, true) => 23,
        });
        if gpu.software && gpu.matrices {
            cases.retain(|case| case.head_dim.max(case.value_dim) <= 24 && case.precision != Precision::F32);
        }
        println!("{}: {} of {} cases", gpu.name, cases.len(), some(1).len());
        conform(gpu, &cases);
    }
}

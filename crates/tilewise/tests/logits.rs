//! Logits changed, masked and told of on every device, against the reference.
#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::Tested;
use testkit::random::Random;
use tilewise::{Device, HostTensor, LogitChange, Logprobs, LogprobsOf, NotFinite, Tensor, reference};

fn upload(device: &dyn Device, rows: &[Vec<f32>]) -> Tensor {
    device.upload(HostTensor::f32(&[rows.len(), rows[0].len()], &rows.concat()).unwrap()).unwrap()
}

fn random_rows(random: &mut Random, count: usize, len: usize) -> Vec<Vec<f32>> {
    (0..count).map(|_| random.normals(len).into_iter().map(|x| x * 3.0).collect()).collect()
}

/// Some places of the rows, ascending, with a change for each.
fn changes(random: &mut Random, rows: usize, len: usize) -> Vec<LogitChange> {
    let mut changes = Vec::new();
    for row in 0..rows as u32 {
        for token in (0..len as u32).filter(|_| random.below(5) == 0).collect::<Vec<_>>() {
            let part = |random: &mut Random| random.below(1000) as f32 / 250.0;
            let (bias, repetition, penalty) = (part(random) - 2.0, 0.5 + part(random), part(random) - 2.0);
            changes.push(LogitChange { row, token, bias, repetition, penalty });
        }
    }
    changes
}

#[test]
fn changes_are_those_of_the_definition_and_touch_no_other_logit() {
    for Tested { name, device, gpu, .. } in common::cpus().iter().chain(common::gpus()) {
        for len in [1, 33, 1000, 40_000] {
            let mut random = Random::new(len as u64);
            let rows = random_rows(&mut random, 4, len);
            let changes = changes(&mut random, 4, len);
            let mut want = rows.concat();
            for change in &changes {
                let logit = &mut want[change.row as usize * len + change.token as usize];
                *logit = change.apply(*logit);
            }
            let mut logits = upload(&**device, &rows);
            device.adjust_logits(&mut logits, &changes).unwrap();
            device.adjust_logits(&mut logits, &[]).unwrap();
            let got = device.download(&logits).unwrap();
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let untouched = want.to_bits() == rows[at / len][at % len].to_bits();
                let near = (got - want).abs() <= 1e-5 * (1.0 + want.abs());
                assert!(got == want || (near && *gpu && !untouched), "{name}, {len}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn a_change_is_bias_then_repetition_then_penalty() {
    let change = LogitChange { row: 0, token: 0, bias: 1.0, repetition: 2.0, penalty: 0.25 };
    assert_eq!(change.apply(3.0), 1.75);
    assert_eq!(change.apply(-3.0), -4.25);
    assert_eq!(change.apply(-1.0), -0.25);
    assert_eq!(change.apply(f32::NEG_INFINITY), f32::NEG_INFINITY);
}

#[test]
fn a_row_is_changed_and_masked_alone_as_in_a_batch() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let (count, len) = (6, 5003);
        let mut random = Random::new(5);
        let rows = random_rows(&mut random, count, len);
        let changes = changes(&mut random, count, len);
        let words = len.div_ceil(32);
        let allowed: Vec<u32> = (0..2 * words).map(|_| random.below(1 << 32) as u32).collect();
        let masked = [1u32, 4];
        let mut together = upload(&**device, &rows);
        device.adjust_logits(&mut together, &changes).unwrap();
        device.mask_logits(&mut together, &masked, &allowed).unwrap();
        let together = device.download(&together).unwrap();
        for (row, logits) in rows.iter().enumerate() {
            let mut alone = upload(&**device, std::slice::from_ref(logits));
            let own = changes.iter().filter(|change| change.row as usize == row);
            let own: Vec<LogitChange> = own.map(|change| LogitChange { row: 0, ..*change }).collect();
            device.adjust_logits(&mut alone, &own).unwrap();
            if let Some(at) = masked.iter().position(|&other| other as usize == row) {
                device.mask_logits(&mut alone, &[0], &allowed[at * words..][..words]).unwrap();
            }
            let alone = device.download(&alone).unwrap();
            assert!(alone == together[row * len..][..len], "{name}: row {row}");
        }
    }
}

#[test]
fn masked_logits_are_minus_infinity_and_the_others_as_they_were() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        for len in [1, 31, 32, 33, 1000, 40_001] {
            let mut random = Random::new(len as u64 + 1);
            let rows = random_rows(&mut random, 3, len);
            let words = len.div_ceil(32);
            let allowed: Vec<u32> = (0..2 * words).map(|_| random.below(1 << 32) as u32).collect();
            let mut want = rows.clone();
            for (row, allowed) in [0, 2].into_iter().zip(allowed.chunks(words)) {
                for token in (0..len).filter(|token| allowed[token / 32] >> (token % 32) & 1 == 0) {
                    want[row][token] = f32::NEG_INFINITY;
                }
            }
            let mut logits = upload(&**device, &rows);
            device.mask_logits(&mut logits, &[0, 2], &allowed).unwrap();
            assert!(device.download(&logits).unwrap() == want.concat(), "{name}, {len}");
        }
    }
}

fn assert_near(what: &str, got: &Result<Logprobs, NotFinite>, want: &Result<Logprobs, NotFinite>) {
    let (Ok(got), Ok(want)) = (got, want) else {
        assert_eq!(got, want, "{what}");
        return;
    };
    let near = |a: f32, b: f32| a == b || (a - b).abs() < 1e-4;
    let same = |(a, b): (&(u32, f32), &(u32, f32))| a.0 == b.0 && near(a.1, b.1);
    let top = got.top.len() == want.top.len() && got.top.iter().zip(&want.top).all(same);
    assert!(top && near(got.logprob, want.logprob), "{what}: {got:?}, not {want:?}");
}

#[test]
fn logprobs_are_those_of_the_reference_in_its_order() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        for len in [1, 19, 20, 1025, 151_936] {
            let mut random = Random::new(len as u64 + 2);
            let mut rows = random_rows(&mut random, 6, len);
            // Equals within and across the parts that threads take; the impossible; zeros of both signs; NaN.
            rows[1].iter_mut().enumerate().for_each(|(id, logit)| *logit = (id % 7) as f32);
            rows[2].iter_mut().skip(1).for_each(|logit| *logit = f32::NEG_INFINITY);
            rows[3].iter_mut().enumerate().for_each(|(id, x)| *x = if id % 2 == 0 { -0.0 } else { 0.0 });
            rows[4][len / 2] = f32::NAN;
            let top = [20, 7, 20, 3, 5, 0];
            let asked = top.map(|top| LogprobsOf { token: random.below(len) as u32, top });
            let got = device.logprobs(&upload(&**device, &rows), &asked).unwrap();
            for ((row, asked), got) in rows.iter().zip(&asked).zip(&got) {
                let want = reference::logprobs(row, asked);
                assert_near(&format!("{name}, {len}, {asked:?}"), got, &want);
            }
            let alone = device.logprobs(&upload(&**device, &rows[..1]), &asked[..1]).unwrap();
            assert_eq!(alone[0], got[0], "{name}, {len}: alone and in a batch");
        }
    }
}

#[test]
fn what_does_not_fit_the_logits_is_refused_and_changes_nothing() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let mut logits = upload(&**device, &[vec![1.0; 40], vec![2.0; 40]]);
        let change = |row, token| LogitChange { row, token, bias: 1.0, repetition: 1.0, penalty: 0.0 };
        for bad in [
            vec![change(0, 40)],
            vec![change(0, 0), change(2, 0)],
            vec![change(0, 3), change(0, 3)],
            vec![change(1, 0), change(0, 0)],
        ] {
            assert!(device.adjust_logits(&mut logits, &bad).is_err(), "{name}: {bad:?}");
        }
        for (rows, words) in [(&[0u32][..], 1), (&[0], 3), (&[2], 2), (&[1, 0], 4), (&[1, 1], 4)] {
            assert!(device.mask_logits(&mut logits, rows, &vec![0; words]).is_err(), "{name}: {rows:?}");
        }
        for (token, top, count) in [(40, 0, 2), (0, 21, 2), (0, 0, 1)] {
            let asked = vec![LogprobsOf { token, top }; count];
            assert!(device.logprobs(&logits, &asked).is_err(), "{name}: {asked:?}");
        }
        assert_eq!(device.download(&logits).unwrap(), [vec![1.0; 40], vec![2.0; 40]].concat(), "{name}");
    }
}

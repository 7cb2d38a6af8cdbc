//! Tokens drawn on a GPU against those that the CPU draws, and against the distribution they come from.
#![allow(missing_docs, clippy::print_stdout)]

mod common;

use common::Tested;
use testkit::random::Random;
use tilewise::backend::cpu::CpuDevice;
use tilewise::{DType, Device, Draw, HostTensor, NotFinite, Sampled, reference};

fn sample(device: &dyn Device, rows: &[Vec<f32>], draws: &[Draw]) -> Vec<Result<Sampled, NotFinite>> {
    let len = rows[0].len();
    let logits = device.upload(HostTensor::f32(&[rows.len(), len], &rows.concat()).unwrap()).unwrap();
    device.sample(&logits, draws).unwrap()
}

fn cpu() -> CpuDevice {
    CpuDevice::new(Some(2)).unwrap()
}

/// Logits of a model that is neither sure nor clueless, with some equals and some that are impossible.
fn logits(random: &mut Random, len: usize) -> Vec<f32> {
    let mut row: Vec<f32> = random.normals(len).into_iter().map(|x| x * 3.0).collect();
    for _ in 0..len / 8 {
        let (from, to) = (random.below(len), random.below(len));
        row[to] = row[from];
    }
    for _ in 0..len / 16 {
        row[random.below(len)] = f32::NEG_INFINITY;
    }
    let kept = random.below(len);
    row[kept] = 1.0;
    row
}

fn chance(random: &mut Random) -> f64 {
    random.below(1 << 30) as f64 / f64::from(1 << 30)
}

/// Lengths at and beside the number of threads, what they read at once, and a vocabulary of today.
const LENGTHS: [usize; 8] = [1, 2, 255, 1023, 1024, 4097, 32_001, 151_936];

fn gpus() -> &'static [Tested] {
    let gpus = common::gpus();
    if gpus.is_empty() {
        println!("gpu: skipped, this machine has none");
    }
    gpus
}

#[test]
fn greedy_tokens_equal_those_of_the_cpu() {
    for Tested { name, device, .. } in gpus() {
        for len in LENGTHS {
            let mut random = Random::new(len as u64);
            let mut rows: Vec<Vec<f32>> = (0..5).map(|_| logits(&mut random, len)).collect();
            // Equals at the top, in several threads' parts; zeros of both signs.
            rows.push(vec![-2.5; len]);
            rows.push((0..len).map(|id| if id % 3 == 1 { 7.0 } else { -7.0 }).collect());
            rows.push((0..len).map(|id| if id % 2 == 0 { -0.0 } else { 0.0 }).collect());
            let draws = vec![Draw::GREEDY; rows.len()];
            assert_eq!(sample(&**device, &rows, &draws), sample(&cpu(), &rows, &draws), "{name}, {len}");
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error_of_their_own_row() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        for len in [3, 2000] {
            let mut rows = vec![vec![0.5; len]; 6];
            rows[1][len - 1] = f32::NAN;
            rows[2][0] = -f32::NAN;
            rows[3][len / 2] = f32::INFINITY;
            rows[4] = vec![f32::NEG_INFINITY; len];
            rows[5][0] = f32::NEG_INFINITY;
            for temperature in [0.0, 1.0] {
                let draws = vec![Draw { temperature, logprob: true, ..Draw::GREEDY }; rows.len()];
                let finite: Vec<bool> = sample(&**device, &rows, &draws).iter().map(Result::is_ok).collect();
                assert_eq!(finite, [true, false, false, false, false, true], "{name}, {len}");
            }
        }
    }
}

#[test]
fn logprobs_are_those_of_the_cpu() {
    for Tested { name, device, .. } in gpus() {
        for len in LENGTHS {
            let mut random = Random::new(len as u64 + 1);
            let rows: Vec<Vec<f32>> = (0..4).map(|_| logits(&mut random, len)).collect();
            let draws = vec![Draw { logprob: true, ..Draw::GREEDY }; rows.len()];
            for (got, want) in sample(&**device, &rows, &draws).iter().zip(sample(&cpu(), &rows, &draws)) {
                let (got, want) = (got.unwrap().logprob.unwrap(), want.unwrap().logprob.unwrap());
                assert!((got - want).abs() < 1e-4, "{name}, {len}: {got} and {want}");
            }
        }
    }
}

/// The distribution that a draw is from, in the order in which it is summed: ids and running sums.
struct Distribution {
    ids: Vec<u32>,
    ends: Vec<f64>,
    /// How near a running sum comes to the edge of the nucleus.
    edge: f64,
}

fn distribution(row: &[f32], draw: &Draw) -> Distribution {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |id: u32| match (f64::from(row[id as usize] - top) / f64::from(draw.temperature)).exp() {
        weight if weight >= f64::from(draw.min_p) => weight,
        _ => 0.0,
    };
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    let filters = draw.top_p < 1.0 || draw.top_k.is_some_and(|k| (k as usize) < row.len());
    if filters {
        ids.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        ids.truncate(draw.top_k.map_or(usize::MAX, |k| k as usize));
    }
    let sums = |ids: &[u32]| {
        let mut sum = 0.0;
        let ends: Vec<f64> = ids.iter().map(|&id| (sum += weight(id), sum).1).collect();
        ends.iter().map(|end| end / sum).collect::<Vec<f64>>()
    };
    let (mut ends, mut edge) = (sums(&ids), 1.0);
    if draw.top_p < 1.0 {
        let top_p = f64::from(draw.top_p);
        edge = ends.iter().map(|end| (end - top_p).abs()).fold(1.0, f64::min);
        let kept = ends.iter().position(|&end| end >= top_p).map_or(ids.len(), |last| last + 1);
        ids.truncate(kept);
        ends = sums(&ids);
    }
    Distribution { ids, ends, edge }
}

/// What the sums of both sides may be apart, of all.
const APART: f64 = 1e-4;

#[test]
fn drawn_tokens_equal_those_of_the_cpu_but_at_the_edges_of_the_distribution() {
    for Tested { name, device, .. } in gpus() {
        let (mut draws_made, mut at_an_edge, mut different) = (0, 0, 0);
        for len in LENGTHS {
            let mut random = Random::new(len as u64 + 2);
            for (temperature, min_p, top_k, top_p) in [
                (1.0, 0.0, None, 1.0),
                (0.3, 0.0, None, 1.0),
                (1.0, 0.0, Some(1), 1.0),
                (0.7, 0.0, Some(40), 1.0),
                (1.0, 0.0, None, 0.9),
                (0.6, 0.0, Some(50), 0.95),
                (1.5, 0.0, Some(5000), 0.5),
                (1e-30, 0.0, None, 1.0),
                (1e30, 0.0, Some(10), 1.0),
                (1.0, 0.05, None, 1.0),
                (2.0, 0.3, Some(300), 0.7),
                (1.0, 1e-30, None, 0.99),
            ] {
                let draw = Draw { temperature, min_p, top_k, top_p, ..Draw::GREEDY };
                let row = logits(&mut random, len);
                let rows = vec![row.clone(); 6];
                let draws: Vec<Draw> = (0..6).map(|_| Draw { chance: chance(&mut random), ..draw }).collect();
                let (got, want) = (sample(&**device, &rows, &draws), sample(&cpu(), &rows, &draws));
                let Distribution { ids, ends, edge } = distribution(&row, &draw);
                for ((got, want), draw) in got.iter().zip(want).zip(&draws) {
                    let (got, want) = (got.unwrap().id, want.unwrap().id);
                    let what = format!("{name}, {len}, {draw:?}: {got}, {want} on the CPU");
                    draws_made += 1;
                    let near = ends.iter().map(|end| (end - draw.chance).abs()).fold(edge, f64::min) < APART;
                    at_an_edge += usize::from(near);
                    different += usize::from(got != want);
                    assert!(near || got == want, "{what}");
                    if edge > APART {
                        let place = ids.iter().position(|&id| id == got).unwrap_or_else(|| panic!("{what}"));
                        let start = if place == 0 { 0.0 } else { ends[place - 1] };
                        let within = start - APART..ends[place] + APART;
                        assert!(within.contains(&draw.chance), "{what}, which is {within:?}");
                    }
                }
            }
        }
        println!("{name}: {draws_made} draws, {at_an_edge} at an edge, {different} differ from the CPU's");
        assert!(4 * at_an_edge < draws_made && 50 * different < draws_made, "{name}: {different} differ");
    }
}

#[test]
fn the_cpu_draws_the_tokens_of_the_reference() {
    for Tested { name, device, .. } in &common::cpus() {
        for len in [1, 2, 15, 64, 257, 3000] {
            let mut random = Random::new(len as u64 + 3);
            let rows: Vec<Vec<f32>> = (0..60).map(|_| logits(&mut random, len)).collect();
            let draw = |(i, random): (usize, &mut Random)| Draw {
                temperature: [0.0, 0.5, 1.0, 2.0][i % 4],
                min_p: [0.0, 0.02, 0.2][i % 3],
                top_k: [None, Some(7), Some(300)][i / 3 % 3],
                top_p: [1.0, 0.8][i % 2],
                chance: chance(random),
                logprob: false,
            };
            let draws: Vec<Draw> = (0..60).map(|i| draw((i, &mut random))).collect();
            for ((row, draw), got) in rows.iter().zip(&draws).zip(sample(&**device, &rows, &draws)) {
                assert_eq!(got, reference::draw(row, draw), "{name}, {len}: {draw:?}");
            }
        }
    }
}

#[test]
fn one_candidate_is_the_greedy_token_and_equals_are_kept_in_order() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let mut random = Random::new(7);
        let rows: Vec<Vec<f32>> = (0..8).map(|_| logits(&mut random, 3000)).collect();
        let one = |random: &mut Random| Draw {
            temperature: 1.3,
            top_k: Some(1),
            chance: chance(random),
            ..Draw::GREEDY
        };
        let draws: Vec<Draw> = (0..8).map(|_| one(&mut random)).collect();
        assert_eq!(
            sample(&**device, &rows, &draws),
            sample(&**device, &rows, &vec![Draw::GREEDY; 8]),
            "{name}"
        );
        // A flat row: the first of the ids, cut by number and by weight.
        let flat = vec![vec![0.25; 5000]; 9];
        for (top_k, top_p, kept) in
            [(None, 1.0, 5000), (Some(77), 1.0, 77), (None, 0.5, 2500), (Some(800), 0.25, 200)]
        {
            let draws: Vec<Draw> = (0..9)
                .map(|i| Draw { temperature: 0.8, top_k, top_p, chance: f64::from(i) / 9.0, ..Draw::GREEDY })
                .collect();
            for (draw, sampled) in draws.iter().zip(sample(&**device, &flat, &draws)) {
                let want = draw.chance * f64::from(kept);
                let id = f64::from(sampled.unwrap().id);
                assert!((id - want.floor()).abs() <= 1.0 && id < f64::from(kept), "{name}: {id}, {draw:?}");
            }
        }
    }
}

#[test]
fn a_row_is_sampled_alone_as_in_a_batch() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let mut random = Random::new(9);
        let rows: Vec<Vec<f32>> = (0..12).map(|_| logits(&mut random, 40_000)).collect();
        let draw = |(i, random): (usize, &mut Random)| Draw {
            temperature: [0.0, 0.5, 1.0, 2.0][i % 4],
            min_p: [0.0, 0.0, 0.02, 0.2, 1.0][i % 5],
            top_k: [None, Some(7), Some(300)][i % 3],
            top_p: [1.0, 0.8][i % 2],
            chance: chance(random),
            logprob: i % 5 != 0,
        };
        let draws: Vec<Draw> = (0..12).map(|i| draw((i, &mut random))).collect();
        let bits = |sampled: &[Result<Sampled, NotFinite>]| {
            let bits = |s: &Result<Sampled, NotFinite>| s.map(|s| (s.id, s.logprob.map(f32::to_bits)));
            sampled.iter().map(bits).collect::<Vec<_>>()
        };
        let together = bits(&sample(&**device, &rows, &draws));
        for (index, (row, draw)) in rows.iter().zip(&draws).enumerate() {
            let alone = bits(&sample(&**device, std::slice::from_ref(row), &[*draw]));
            assert_eq!(alone[0], together[index], "{name}: {draw:?}");
            assert_eq!(alone[0].unwrap().1.is_some(), draw.logprob);
        }
    }
}

#[test]
fn draws_that_do_not_fit_the_logits_are_refused() {
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let logits = device.upload(HostTensor::f32(&[2, 3], &[0.0; 6]).unwrap()).unwrap();
        let hot = Draw { temperature: 1.0, ..Draw::GREEDY };
        assert!(device.sample(&logits, &[Draw::GREEDY]).is_err(), "{name}");
        for bad in
            [Draw { top_k: Some(0), ..hot }, Draw { min_p: 1.1, ..hot }, Draw { min_p: f32::NAN, ..hot }]
        {
            assert!(device.sample(&logits, &[Draw::GREEDY, bad]).is_err(), "{name}: {bad:?}");
        }
    }
}

#[test]
fn tokens_that_stay_on_a_device_are_those_that_come_back() {
    let mut random = Random::new(11);
    for Tested { name, device, .. } in common::cpus().iter().chain(common::gpus()) {
        let mut rows: Vec<Vec<f32>> = (0..5).map(|_| logits(&mut random, 300)).collect();
        rows[2][7] = f32::NAN;
        let draw = |_| Draw { temperature: 1.0, chance: chance(&mut random), top_p: 0.9, ..Draw::GREEDY };
        let draws: Vec<Draw> = (0..5).map(draw).collect();
        let want: Vec<u32> =
            sample(&**device, &rows, &draws).into_iter().map(|s| s.map_or(0, |s| s.id)).collect();
        let given = device.upload(HostTensor::f32(&[5, 300], &rows.concat()).unwrap()).unwrap();
        // A table whose row says which it is.
        let row = |id: usize| [id as f32; 8];
        let table: Vec<f32> = (0..300).flat_map(row).collect();
        let table = HostTensor::f32(&[300, 8], &table).unwrap();
        let table = device.pack_linear(&[table], None, DType::F32).unwrap();
        let mut ids = device.alloc(&[9], DType::U32).unwrap();
        device.sample_ids(&given, &draws, &mut ids).unwrap();
        let mut out = device.alloc(&[5, 8], DType::F32).unwrap();
        device.embed(&table, &ids, &mut out).unwrap();
        let embedded: Vec<u32> = device.download(&out).unwrap().chunks(8).map(|row| row[0] as u32).collect();
        assert_eq!((embedded, ids.rows()), (want.clone(), 5), "{name}");
        // Those of the first two rows, and of all.
        let two = device.upload(HostTensor::f32(&[2, 300], &rows[..2].concat()).unwrap()).unwrap();
        let mut others = device.alloc(&[2], DType::U32).unwrap();
        device.sample_ids(&two, &draws[..2], &mut others).unwrap();
        assert_eq!(device.read_ids(&[&ids, &others]).unwrap(), [want.clone(), want[..2].to_vec()], "{name}");
        assert!(device.sample_ids(&given, &draws, &mut others).is_err(), "{name}: there is no room");
    }
}

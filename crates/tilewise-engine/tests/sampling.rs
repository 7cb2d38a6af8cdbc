//! The sampler: draws follow the distribution that the parameters describe.

use std::collections::BTreeSet;

use tilewise::{Draw, HostTensor, NotFinite, Sampled};
use tilewise_engine::{SamplingParams, sampler};

/// Draws at the given positions of a sequence, all from the same logits.
fn draw_all(
    logits: &[f32],
    params: &SamplingParams,
    positions: std::ops::Range<u64>,
) -> Vec<Result<Sampled, NotFinite>> {
    /// Rows that are on the device at once.
    const ROWS: usize = 500;
    let device = tilewise::open("cpu", Some(1)).unwrap();
    let draws: Vec<Draw> = positions.map(|position| sampler::draw(params, position)).collect();
    let sample = |draws: &[Draw]| {
        let rows = logits.repeat(draws.len());
        let rows = device.upload(HostTensor::f32(&[draws.len(), logits.len()], &rows).unwrap()).unwrap();
        device.sample(&rows, draws).unwrap()
    };
    draws.chunks(ROWS).flat_map(sample).collect()
}

fn draw(logits: &[f32], params: &SamplingParams, position: u64) -> Sampled {
    draw_all(logits, params, position..position + 1)[0].unwrap()
}

/// Logits whose probabilities are `1 : 2 : 4 : ..` in a scattered order.
fn powers(count: usize) -> Vec<f32> {
    (0..count).map(|index| (index * 5 % count) as f32 * std::f32::consts::LN_2).collect()
}

/// How often each token is drawn, at positions that follow each other.
fn histogram(logits: &[f32], params: &SamplingParams, draws: u64) -> Vec<f64> {
    let mut counts = vec![0.0; logits.len()];
    for sampled in draw_all(logits, params, 0..draws) {
        counts[sampled.unwrap().id as usize] += 1.0;
    }
    counts
}

/// The chi-squared statistic of counts against probabilities.
fn chi_squared(counts: &[f64], probabilities: &[f64]) -> f64 {
    let draws: f64 = counts.iter().sum();
    counts
        .iter()
        .zip(probabilities)
        .filter(|(_, p)| **p > 0.0)
        .map(|(n, p)| (n - p * draws).powi(2) / (p * draws))
        .sum()
}

fn softmax(logits: &[f32], temperature: f64, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let weight =
        |(index, &x): (usize, &f32)| if keep(index) { (f64::from(x) / temperature).exp() } else { 0.0 };
    let weights: Vec<f64> = logits.iter().enumerate().map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id_among_equals() {
    let greedy = SamplingParams::default();
    assert_eq!(draw(&[1.0, 3.0, 2.0, 3.0], &greedy, 0).id, 1);
    assert_eq!(draw(&[-5.0; 40], &greedy, 9).id, 0);
    let mut logits = vec![0.0; 1000];
    logits[777] = f32::MIN_POSITIVE;
    assert_eq!(draw(&logits, &greedy, 0).id, 777);
    assert_eq!(draw(&[f32::NEG_INFINITY, -1e30], &greedy, 0).id, 1);
}

#[test]
fn the_logprob_is_the_log_of_the_softmax_at_temperature_one() {
    let logits: Vec<f32> = (0..5003).map(|index| ((index * 7919) % 5003) as f32 * 0.004 - 7.0).collect();
    let want = softmax(&logits, 1.0, |_| true);
    for params in [
        SamplingParams { logprobs: true, ..SamplingParams::default() },
        SamplingParams {
            temperature: 2.0,
            top_k: Some(50),
            seed: 3,
            logprobs: true,
            ..SamplingParams::default()
        },
    ] {
        let Sampled { id, logprob } = draw(&logits, &params, 11);
        let logprob = logprob.unwrap();
        assert!(
            (f64::from(logprob) - want[id as usize].ln()).abs() < 2e-6,
            "{logprob} {}",
            want[id as usize].ln()
        );
    }
}

#[test]
fn draws_follow_the_softmax_at_the_temperature() {
    let logits = powers(8);
    for temperature in [0.5f32, 1.0, 3.0] {
        let params = SamplingParams { temperature, seed: 42, ..SamplingParams::default() };
        let chi2 = chi_squared(
            &histogram(&logits, &params, 40_000),
            &softmax(&logits, f64::from(temperature), |_| true),
        );
        // 7 degrees of freedom: 30 is exceeded once in 10^4.
        assert!(chi2 < 30.0, "temperature {temperature}: {chi2}");
    }
}

#[test]
fn top_k_keeps_the_most_probable_and_top_p_the_fewest_that_suffice() {
    let logits = powers(8);
    let rank = |index: usize| 7 - index * 5 % 8;
    // Probabilities are 128, 64, 32, .. of 255: three reach 0.8 of all, two reach 0.8 of the first three.
    for (top_k, top_p, kept) in
        [(Some(3), 1.0, 3), (None, 0.8, 3), (Some(3), 0.8, 2), (Some(1), 1.0, 1), (None, 1e-6, 1)]
    {
        let params = SamplingParams { temperature: 1.0, top_k, top_p, seed: 5, logprobs: false };
        let counts = histogram(&logits, &params, 20_000);
        let drawn: BTreeSet<usize> = (0..8).filter(|&index| counts[index] > 0.0).map(rank).collect();
        assert_eq!(drawn, (0..kept).collect(), "top_k {top_k:?}, top_p {top_p}");
        let chi2 = chi_squared(&counts, &softmax(&logits, 1.0, |index| rank(index) < kept));
        assert!(chi2 < 25.0, "top_k {top_k:?}, top_p {top_p}: {chi2}");
    }
}

#[test]
fn top_p_of_a_flat_distribution_reaches_past_what_is_sorted_first() {
    let logits = vec![0.0; 5000];
    let params = SamplingParams { temperature: 1.0, top_p: 0.5, seed: 1, ..SamplingParams::default() };
    let drawn = draw_all(&logits, &params, 0..4000);
    let largest = drawn.into_iter().map(|sampled| sampled.unwrap().id).max().unwrap();
    // Equal logits are kept in order of their ids.
    assert!((2400..2500).contains(&largest), "{largest}");
}

#[test]
fn ties_at_the_edge_of_top_k_go_to_the_lowest_ids() {
    let params = SamplingParams { temperature: 1.0, top_k: Some(2), seed: 8, ..SamplingParams::default() };
    let counts = histogram(&[0.0, 1.0, 0.0, 0.0], &params, 2000);
    assert!(counts[0] > 0.0 && counts[2] == 0.0 && counts[3] == 0.0, "{counts:?}");
}

#[test]
fn a_seed_and_a_position_determine_the_draw() {
    let logits = vec![0.0; 1000];
    let params = |seed| SamplingParams { temperature: 1.0, seed, ..SamplingParams::default() };
    let row = |seed| (0..50).map(|position| draw(&logits, &params(seed), position).id).collect::<Vec<_>>();
    assert_eq!(row(1), row(1));
    assert_ne!(row(1), row(2));
    let distinct: BTreeSet<u32> = row(1).into_iter().collect();
    assert!(distinct.len() > 40, "{} of 50 draws differ", distinct.len());
}

#[test]
fn a_tiny_temperature_is_greedy_and_a_huge_one_uniform() {
    let logits = [1.0, 1.5, -2.0];
    let at = |temperature| SamplingParams { temperature, seed: 4, ..SamplingParams::default() };
    assert!((0..100).all(|position| draw(&logits, &at(1e-30), position).id == 1));
    let counts = histogram(&logits, &at(1e30), 3000);
    assert!(counts.iter().all(|&count| (count - 1000.0).abs() < 120.0), "{counts:?}");
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 5, 39] {
            let mut logits = vec![0.0; 40];
            logits[at] = bad;
            let drawn = draw_all(&logits, &SamplingParams::default(), 0..1);
            assert_eq!(drawn, [Err(NotFinite)], "{bad} at {at}");
        }
    }
    let drawn = draw_all(&[f32::NEG_INFINITY; 3], &SamplingParams::default(), 0..1);
    assert_eq!(drawn, [Err(NotFinite)]);
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let default = SamplingParams::default;
    for (params, name) in [
        (SamplingParams { temperature: -0.1, ..default() }, "temperature"),
        (SamplingParams { temperature: f32::NAN, ..default() }, "temperature"),
        (SamplingParams { temperature: f32::INFINITY, ..default() }, "temperature"),
        (SamplingParams { top_k: Some(0), ..default() }, "top_k"),
        (SamplingParams { top_p: 0.0, ..default() }, "top_p"),
        (SamplingParams { top_p: 1.01, ..default() }, "top_p"),
        (SamplingParams { top_p: f32::NAN, ..default() }, "top_p"),
    ] {
        assert!(params.validate().unwrap_err().to_string().starts_with(name), "{params:?}");
    }
    assert!(default().validate().is_ok());
}

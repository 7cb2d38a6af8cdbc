//! The sampler: draws follow the distribution that the parameters describe.

use std::collections::BTreeSet;

use tilewise::{Draw, HostTensor, LogitChange, NotFinite, Sampled};
use tilewise_engine::SamplingParams;
use tilewise_engine::sampler::{self, History};

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
        let params = SamplingParams { temperature: 1.0, top_k, top_p, seed: 5, ..SamplingParams::default() };
        let counts = histogram(&logits, &params, 20_000);
        let drawn: BTreeSet<usize> = (0..8).filter(|&index| counts[index] > 0.0).map(rank).collect();
        assert_eq!(drawn, (0..kept).collect(), "top_k {top_k:?}, top_p {top_p}");
        let chi2 = chi_squared(&counts, &softmax(&logits, 1.0, |index| rank(index) < kept));
        assert!(chi2 < 25.0, "top_k {top_k:?}, top_p {top_p}: {chi2}");
    }
}

#[test]
fn min_p_keeps_what_is_probable_enough_beside_the_most_probable_and_comes_before_top_p() {
    let logits = powers(8);
    let rank = |index: usize| 7 - index * 5 % 8;
    // Weights are 1, 1/2, 1/4, ..: min_p 0.2 leaves three, of whose sum two are 0.857; squared at temperature 1/2.
    for (temperature, min_p, top_p, kept) in
        [(1.0, 0.2, 1.0, 3), (1.0, 0.2, 0.85, 2), (0.5, 0.2, 1.0, 2), (1.0, 1.0, 1.0, 1), (1.0, 1e-3, 1.0, 8)]
    {
        let params = SamplingParams { temperature, min_p, top_p, seed: 6, ..SamplingParams::default() };
        let counts = histogram(&logits, &params, 20_000);
        let drawn: BTreeSet<usize> = (0..8).filter(|&index| counts[index] > 0.0).map(rank).collect();
        assert_eq!(drawn, (0..kept).collect(), "{params:?}");
        let want = softmax(&logits, f64::from(temperature), |index| rank(index) < kept);
        let chi2 = chi_squared(&counts, &want);
        // 7 degrees of freedom at most: 30 is exceeded once in 10^4.
        assert!(chi2 < 30.0, "{params:?}: {chi2}");
    }
}

#[test]
fn penalties_and_bias_draw_from_the_distribution_that_they_describe() {
    let logits: Vec<f32> = powers(8).iter().map(|x| x - 2.5).collect();
    let (prompt, output) = ([0, 3, 3, 5], [1, 3, 1, 1, 7]);
    let params = SamplingParams {
        temperature: 1.0,
        repetition_penalty: 1.5,
        presence_penalty: 0.5,
        frequency_penalty: -0.25,
        logit_bias: vec![(6, 2.0), (1, 1.0)],
        seed: 12,
        ..SamplingParams::default()
    };
    let changed = |token: usize| {
        let count = output.iter().filter(|&&id| id == token).count() as f64;
        let bias = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0][token];
        let x = f64::from(logits[token]) + bias;
        let x = match prompt.contains(&token) || count > 0.0 {
            true if x > 0.0 => x / 1.5,
            true => x * 1.5,
            false => x,
        };
        (x - 0.5 * count.min(1.0) + 0.25 * count) as f32
    };
    let want: Vec<f32> = (0..8).map(changed).collect();
    let mut history = History::new(&params, &prompt.map(|id| id as u32));
    output.iter().for_each(|&id| history.push(&params, id as u32));

    const ROWS: usize = 20_000;
    let device = tilewise::open("cpu", Some(1)).unwrap();
    let mut rows = device.upload(HostTensor::f32(&[ROWS, 8], &logits.repeat(ROWS)).unwrap()).unwrap();
    let changes = history.changes(&params, &[]);
    let of_row = |row| changes.iter().map(move |change| LogitChange { row, ..*change });
    device.adjust_logits(&mut rows, &(0..ROWS as u32).flat_map(of_row).collect::<Vec<_>>()).unwrap();
    for (got, want) in device.download(&rows).unwrap().iter().zip(want.iter().cycle()) {
        assert!((got - want).abs() < 1e-6, "{got}, not {want}");
    }
    let draws: Vec<Draw> = (0..ROWS as u64).map(|position| sampler::draw(&params, position)).collect();
    let mut counts = vec![0.0; 8];
    for sampled in device.sample(&rows, &draws).unwrap() {
        counts[sampled.unwrap().id as usize] += 1.0;
    }
    let chi2 = chi_squared(&counts, &softmax(&want, 1.0, |_| true));
    assert!(chi2 < 30.0, "{chi2}: {counts:?}");
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
        (SamplingParams { min_p: -0.1, ..default() }, "min_p"),
        (SamplingParams { min_p: f32::NAN, ..default() }, "min_p"),
        (SamplingParams { repetition_penalty: 0.0, ..default() }, "repetition_penalty"),
        (SamplingParams { repetition_penalty: f32::INFINITY, ..default() }, "repetition_penalty"),
        (SamplingParams { presence_penalty: 2.1, ..default() }, "presence_penalty"),
        (SamplingParams { frequency_penalty: f32::NAN, ..default() }, "frequency_penalty"),
        (SamplingParams { logit_bias: vec![(0, f32::NEG_INFINITY)], ..default() }, "logit_bias"),
        (SamplingParams { logit_bias: vec![(3, 1.0), (2, 0.0), (3, 2.0)], ..default() }, "logit_bias"),
        (SamplingParams { top_logprobs: 1, ..default() }, "top_logprobs"),
        (SamplingParams { top_logprobs: 21, logprobs: true, ..default() }, "top_logprobs"),
    ] {
        assert!(params.validate().unwrap_err().to_string().starts_with(name), "{params:?}");
    }
    assert!(default().validate().is_ok());
}

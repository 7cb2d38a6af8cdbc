//! Laws of attention, compared in bits: whatever surrounds a query, its row is the same.
//!
//! Every law runs on every device, kernel and type of keys; the masks take turns. Lengths straddle vectors (16), blocks
//! (128) and chunks (1024) of keys.
#![allow(missing_docs, clippy::print_stdout)]

#[path = "../common/mod.rs"]
mod common;
mod heads;
mod launches;
mod merge;
mod shared;

use std::ops::Range;

use testkit::tolerance::Precision;
use tilewise::Mask;
use tilewise::backend::cpu::CpuDevice;

use common::Tested;
use launches::{
    LONG, MASKS, ODD, Sequence, Spec, assert_rows, dense, everywhere, kernels, keyless, on, on_all, paged,
    ragged, whole,
};

#[test]
fn pages_of_any_size_and_order_give_the_bits_of_contiguous_keys() {
    everywhere(|tested, spec, what| {
        let sequences = spec.sequences();
        let want = ragged(tested, spec, &sequences);
        let ranges: Vec<Range<usize>> = sequences.iter().map(|s| s.cached..s.tokens).collect();
        for &page_size in if tested.software { &[16, 128][..] } else { &[16, 32, 64, 128] } {
            let got = paged(tested, spec, &sequences, page_size, std::slice::from_ref(&ranges));
            assert_rows(&got, &want, &format!("{what} pages of {page_size}"));
        }
    });
}

#[test]
fn dense_views_give_the_bits_of_ragged_ones() {
    everywhere(|tested, spec, what| {
        let all = spec.sequences();
        let pair = [all[1].clone(), all[5].clone()];
        for sequences in [&pair[..], &all[..1], &all[2..3]] {
            assert_rows(&dense(tested, spec, sequences), &ragged(tested, spec, sequences), what);
        }
    });
}

#[test]
fn a_batch_is_its_sequences_one_by_one() {
    everywhere(|tested, spec, what| {
        let sequences = spec.sequences();
        let want = whole(tested, spec, &sequences);
        for (index, own) in sequences.iter().enumerate() {
            let got = whole(tested, spec, std::slice::from_ref(own));
            assert_rows(&got, &want[index..=index], &format!("{what} sequence {index} alone"));
        }
    });
}

#[test]
fn chunks_of_any_size_and_single_tokens_give_the_bits_of_the_whole() {
    everywhere(|tested, spec, what| {
        let mut sequences = spec.sequences();
        if tested.software {
            // The longest prompt takes most of the steps, and has no key before its own.
            sequences.remove(0);
        }
        let want = whole(tested, spec, &sequences);
        // Pages as in the whole, where other ones would have to be compiled.
        let (sizes, page_size) =
            if tested.software { (&[1, 16][..], 16) } else { (&[1, 5, 16, 33, 128][..], 32) };
        for &size in sizes {
            let chunks: Vec<Vec<Range<usize>>> = sequences.iter().map(|s| s.chunks(size)).collect();
            let steps = chunks.iter().map(Vec::len).max().unwrap();
            // A sequence that is done takes no part, but keeps its place in the batch.
            let step = |i: usize| {
                let range = |(s, chunks): (&Sequence, &Vec<Range<usize>>)| {
                    chunks.get(i).cloned().unwrap_or(s.tokens..s.tokens)
                };
                sequences.iter().zip(&chunks).map(range).collect()
            };
            let steps: Vec<Vec<Range<usize>>> = (0..steps).map(step).collect();
            let got = paged(tested, spec, &sequences, page_size, &steps);
            assert_rows(&got, &want, &format!("{what} chunks of {size}"));
        }
    });
}

#[test]
fn prefill_and_decode_give_the_same_bits() {
    on_all(|tested| {
        on(tested, &[Some("prefill")], |tested, spec, what| {
            let sequences = spec.sequences();
            let want = whole(tested, spec, &sequences);
            for kernel in [Some("decode-split-kv"), None] {
                assert_rows(&whole(tested, &Spec { kernel, ..*spec }, &sequences), &want, what);
            }
        });
    });
}

#[test]
fn queries_without_a_key_have_zeros_for_outputs() {
    on_all(|tested| {
        on(tested, &[Some("prefill")], |tested, spec, what| {
            let outputs = spec.shape.qo_heads * spec.shape.value_dim;
            let rows = keyless(tested, spec, 150);
            assert_eq!(rows.len(), 150, "{what}");
            for (query, row) in rows.iter().enumerate() {
                let (out, lse) = row.split_at(outputs);
                assert!(out.iter().all(|bits| f32::from_bits(*bits) == 0.0), "{what}: query {query}");
                assert!(lse.iter().all(|bits| f32::from_bits(*bits) == f32::NEG_INFINITY), "{what}: {query}");
            }
        });
    });
}

#[test]
fn a_query_that_is_not_a_number_has_no_answer_that_is() {
    everywhere(|tested, spec, what| {
        let mut sequences = spec.sequences();
        let (heads, dim) = (spec.shape.qo_heads, spec.shape.value_dim);
        sequences[3].q[2040 * spec.q_row()] = f32::NAN;
        let rows = whole(tested, spec, &sequences);
        let row = rows[3][2040 - 2035].iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<f32>>();
        let (out, lse) = row.split_at(heads * dim);
        assert!(out[..dim].iter().all(|x| x.is_nan()) && lse[0].is_nan(), "{what}: {out:?} {lse:?}");
        assert!(out[dim..].iter().chain(&lse[1..]).all(|x| x.is_finite()), "{what}: another head");
    });
}

#[test]
fn a_value_that_is_not_finite_is_not_lost_on_a_query_that_sees_it() {
    on_all(|tested| {
        for kernel in [Some("prefill"), Some("decode-split-kv")] {
            let spec = Spec { kernel, precision: Precision::F16, mask: Mask::Causal, shape: LONG };
            let (heads, dim) = (spec.shape.qo_heads, spec.shape.value_dim);
            // One query or many, with the value within the first look at keys and beyond it.
            for (cached, tokens, at) in [(19, 20, 3), (19, 20, 17), (0, 40, 3), (30, 70, 33)] {
                let mut sequence = Sequence::new(cached, tokens, 5, &spec);
                sequence.v[at * dim + 5] = f32::INFINITY;
                for run in [ragged, whole] {
                    let rows = run(tested, &spec, std::slice::from_ref(&sequence)).remove(0);
                    for (position, row) in (cached..).zip(&rows) {
                        let seen = (0..heads).map(|head| f32::from_bits(row[head * dim + 5]));
                        let finite = seen.filter(|x| x.is_finite()).count();
                        let want = if position >= at { 0 } else { heads };
                        assert_eq!(finite, want, "{} {spec:?}: key {at}, query {position}", tested.name);
                    }
                }
            }
        }
    });
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let open = |threads| Tested::cpu("cpu", CpuDevice::new(Some(threads)).unwrap());
    for (turn, kernel) in kernels(&*open(1).device).into_iter().enumerate() {
        let spec = Spec { kernel, precision: Precision::ALL[turn % 3], mask: MASKS[turn % 3], shape: ODD };
        let sequences = spec.sequences();
        let run = |threads| whole(&open(threads), &spec, &sequences);
        let want = run(1);
        for threads in [2, 3, 5] {
            assert_rows(&run(threads), &want, &format!("{spec:?} on {threads} threads"));
        }
    }
}

#[test]
fn any_instruction_set_gives_the_same_bits() {
    let cpus = common::cpus();
    let scalar = cpus.iter().find(|cpu| cpu.name == "scalar").unwrap();
    for cpu in &cpus {
        on(cpu, &[Some("prefill"), Some("decode-split-kv")], |tested, spec, what| {
            for mask in MASKS {
                let spec = Spec { mask, ..*spec };
                let sequences = spec.sequences();
                let want = whole(scalar, &spec, &sequences[..3]);
                assert_rows(&whole(tested, &spec, &sequences[..3]), &want, &format!("{what} {mask:?}"));
            }
        });
    }
}

#[test]
fn keys_that_a_query_does_not_see_change_no_bit_of_its_row() {
    everywhere(|tested, spec, what| {
        let (lens, poisons) = (
            [(1000, 1060, 1021), (0, 150, 70), (1000, 1060, 1030)],
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY],
        );
        let few = if tested.software { 1 } else { 3 };
        for &(cached, tokens, from) in &lens[..few] {
            let clean = Sequence::new(cached, tokens, 7, spec);
            for &poison in &poisons[..few] {
                // Future keys, and future queries.
                let mut later = clean.clone();
                later.k[from * spec.shape.head_dim..].fill(poison);
                later.v[from * spec.shape.value_dim..].fill(poison);
                later.q[from * spec.q_row()..].fill(poison);
                let rows = 0..from - cached;
                assert_same_rows(tested, spec, (&clean, &later), rows, &format!("{what} later {poison}"));
                // Keys that the window has left behind.
                let Mask::Window { left: Some(left), .. } = spec.mask else { continue };
                let mut earlier = clean.clone();
                earlier.k[..(from - left.min(from as u32) as usize) * spec.shape.head_dim].fill(poison);
                earlier.v[..(from - left.min(from as u32) as usize) * spec.shape.value_dim].fill(poison);
                let rows = from - cached..tokens - cached;
                assert_same_rows(tested, spec, (&clean, &earlier), rows, &format!("{what} left {poison}"));
            }
        }
    });
}

fn assert_same_rows(
    tested: &Tested,
    spec: &Spec,
    (clean, poisoned): (&Sequence, &Sequence),
    rows: Range<usize>,
    what: &str,
) {
    for run in [ragged, whole] {
        let want = run(tested, spec, std::slice::from_ref(clean)).remove(0);
        let got = run(tested, spec, std::slice::from_ref(poisoned)).remove(0);
        assert_rows(&[got[rows.clone()].to_vec()], &[want[rows.clone()].to_vec()], what);
    }
}

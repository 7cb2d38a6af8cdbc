//! Laws of the states that kernels merge.

use testkit::random::Random;
use tilewise::SoftmaxState;

/// A state as a kernel might leave it.
fn state(random: &mut Random) -> SoftmaxState {
    let max = random.normal() * 10.0;
    SoftmaxState { max, sum: random.normal().abs() + 1.0, out: random.normals(5) }
}

#[test]
fn merge_is_associative_and_commutative_up_to_rounding() {
    let mut random = Random::new(1);
    let merged = |a: &SoftmaxState, b: &SoftmaxState| {
        let mut both = a.clone();
        both.merge(b);
        both
    };
    for _ in 0..1000 {
        let (a, b, c) = (state(&mut random), state(&mut random), state(&mut random));
        let left = merged(&merged(&a, &b), &c);
        for other in [merged(&a, &merged(&b, &c)), merged(&merged(&c, &b), &a)] {
            assert_eq!(left.max, other.max);
            let pairs = left.finish().into_iter().zip(other.finish());
            for (x, y) in pairs.chain([(left.lse(), other.lse())]) {
                assert!((x - y).abs() <= 4e-6 * x.abs().max(1.0), "{x} and {y} of {a:?} {b:?} {c:?}");
            }
        }
    }
}

#[test]
fn an_empty_state_is_the_identity_of_merge() {
    let mut random = Random::new(2);
    for _ in 0..100 {
        let own = state(&mut random);
        let (mut left, mut right) = (SoftmaxState::empty(5), own.clone());
        left.merge(&own);
        right.merge(&SoftmaxState::empty(5));
        assert_eq!((&left, &right), (&own, &own));
    }
    let mut empty = SoftmaxState::empty(5);
    empty.merge(&SoftmaxState::empty(5));
    assert_eq!((empty.finish(), empty.lse()), (vec![0.0; 5], f32::NEG_INFINITY));
}

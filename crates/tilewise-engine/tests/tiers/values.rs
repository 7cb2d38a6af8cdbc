//! Stored values: no change to one goes unseen.

use tilewise_engine::cache::tiers::{Flaw, Value};

use crate::support::Chunks;

#[test]
fn a_sealed_value_opens_to_its_pages_under_its_key_alone() {
    let chunks = Chunks::new(2, 64);
    let value = chunks.value(0);
    assert_eq!(*value.open(&chunks.key(0)).unwrap(), chunks.pages(0));
    assert_eq!(value.open(&chunks.key(1)).unwrap_err(), Flaw::Foreign);
    assert_eq!(value.open(&chunks.unknown()).unwrap_err(), Flaw::Foreign);
    // The same tokens in a cache whose chunks have another size.
    let other = Chunks::new(1, 128);
    assert_eq!(value.open(&other.key(0)).unwrap_err(), Flaw::Foreign);
}

#[test]
fn every_changed_bit_and_every_other_length_is_a_flaw() {
    let chunks = Chunks::new(1, 64);
    let good = chunks.value(0).as_bytes().to_vec();
    for bit in 0..8 * good.len() {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Value::from_bytes(bad).open(&chunks.key(0)).is_err(), "bit {bit}");
    }
    for len in 0..good.len() {
        let flaw = Value::from_bytes(good[..len].to_vec()).open(&chunks.key(0)).unwrap_err();
        assert_eq!(flaw, Flaw::Length, "the first {len} of {} bytes", good.len());
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert_eq!(Value::from_bytes(longer).open(&chunks.key(0)).unwrap_err(), Flaw::Length);
}

#[test]
fn another_schema_and_pages_of_another_kind_are_told_from_damage() {
    let chunks = Chunks::new(1, 64);
    let good = chunks.value(0).as_bytes().to_vec();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        Value::from_bytes(bytes).open(&chunks.key(0)).unwrap_err()
    };
    assert_eq!(with(0, b'X'), Flaw::Foreign, "the magic");
    assert_eq!(with(4, 2), Flaw::Foreign, "the schema's version");
    assert_eq!(with(good.len() - 1, !good[good.len() - 1]), Flaw::Checksum, "the last byte");
    assert_eq!(with(20, !good[20]), Flaw::Checksum, "the checksum itself");
}

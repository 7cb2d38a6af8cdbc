//! Random weights, to measure with.

use half::bf16;

/// Bytes that look like weights.
///
/// A pattern of bf16 numbers near N(0, 0.02) is repeated. Its length is a prime, so that the rows of a matrix
/// differ.
pub(super) struct Dummy {
    pattern: Vec<u8>,
}

/// A Mersenne prime: about 1 MiB of bf16.
const PATTERN: u64 = (1 << 19) - 1;

impl Dummy {
    pub(super) fn new() -> Self {
        let value = |index: u64| {
            // The sum of four uniform numbers of 16 bits is near enough to normal: variance 4/12.
            let bits = scramble(index);
            let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
            let normal = (sum as f32 / 65536.0 - 2.0) * (12.0f32 / 4.0).sqrt();
            bf16::from_f32(0.02 * normal)
        };
        Self { pattern: (0..PATTERN).flat_map(|index| value(index).to_ne_bytes()).collect() }
    }

    /// `elements` bf16 numbers, which depend on `name`.
    pub(super) fn bytes(&self, name: &str, elements: usize) -> Vec<u8> {
        let seed = name.bytes().fold(0, |seed, byte| scramble(seed ^ u64::from(byte)));
        let mut start = (seed % PATTERN) as usize * 2;
        let len = elements * 2;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let take = (self.pattern.len() - start).min(len - bytes.len());
            bytes.extend_from_slice(&self.pattern[start..start + take]);
            start = 0;
        }
        bytes
    }
}

fn scramble(index: u64) -> u64 {
    let mut x = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

//! Random weights, to measure with.

use half::bf16;

use crate::{Error, Result};

/// Bytes that look like weights.
///
/// A pattern of bf16 numbers near N(0, 0.02), of which every matrix is made by rows: no gigabytes are filled, only
/// to be packed and thrown away.
pub(super) struct Dummy {
    pattern: Vec<u8>,
}

/// Numbers in a piece of a matrix at most, and places where a piece may start; a Mersenne prime.
const PIECE: usize = (1 << 19) - 1;

impl Dummy {
    pub(super) fn new() -> Self {
        let value = |index: usize| {
            // The sum of four uniform numbers of 16 bits is near enough to normal: variance 4/12.
            let bits = scramble(index as u64);
            let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
            let normal = (sum as f32 / 65536.0 - 2.0) * (12.0f32 / 4.0).sqrt();
            bf16::from_f32(0.02 * normal)
        };
        Self { pattern: (0..2 * PIECE).flat_map(|index| value(index).to_ne_bytes()).collect() }
    }

    /// A matrix `[rows, row_len]` in bf16, which depends on `name`, in pieces `(rows, bytes)`.
    pub(super) fn matrix(&self, name: &str, rows: usize, row_len: usize) -> Result<Vec<(usize, &[u8])>> {
        if row_len > PIECE {
            let why = format!("{name} has rows of {row_len}; random weights have at most {PIECE}");
            return Err(Error::unsupported("a matrix of random weights", why));
        }
        let most = PIECE / row_len;
        let seed = name.bytes().fold(0, |seed, byte| scramble(seed ^ u64::from(byte)));
        let piece = |first: usize| {
            let (rows, start) = (most.min(rows - first), scramble(seed ^ first as u64) as usize % PIECE);
            (rows, &self.pattern[2 * start..2 * (start + rows * row_len)])
        };
        Ok((0..rows).step_by(most).map(piece).collect())
    }
}

fn scramble(index: u64) -> u64 {
    let mut x = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x = (x ^ (x >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ (x >> 32)
}

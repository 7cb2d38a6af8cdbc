//! How a matrix kernel is laid out: a function of the head's sizes and the device alone, so that bits are too.

use super::super::context::Abilities;
use super::Path;
use crate::{AttentionParams, DType};

/// The sizes that a matrix kernel is specialised with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MatrixShape {
    /// Rows and columns of a matrix unit's tile.
    pub tile: usize,
    /// Threads of a subgroup.
    pub subgroup: usize,
    /// Keys of a step.
    pub keys: usize,
    /// Row tiles of a work group.
    pub row_tiles: usize,
    /// Subgroups that share a row tile.
    pub split: usize,
    /// Whether tiles are arrays of vectors.
    pub wide: bool,
}

impl MatrixShape {
    /// The layout of a kernel, where the device has matrix units and the keys' type fits them.
    pub(super) fn new(abilities: &Abilities, params: &AttentionParams, path: Path) -> Option<Self> {
        let (tile, subgroup) = (abilities.matrix_tile? as usize, abilities.subgroup? as usize);
        if params.kv_dtype == DType::F32 || subgroup < tile {
            return None;
        }
        // Keys of a step decide where a row's maximum is looked at: they must be the same for both paths.
        let (keys, row_tiles, split) = match params.head_dim.max(params.value_dim) {
            0..=128 => (16, 16, 1),
            129..=256 => (16, 4, 2),
            _ => (tile, 1, 4),
        };
        let (row_tiles, split) = match path {
            Path::Prefill => (row_tiles, split),
            // Never fewer than two subgroups: one alone is miscompiled for Apple's GPUs.
            Path::Decode => (1, split.max(2)),
        };
        Some(Self { tile, subgroup, keys, row_tiles, split, wide: abilities.vector_tiles })
    }

    /// Rows of a work group.
    pub(super) fn rows(&self) -> usize {
        self.row_tiles * self.tile
    }

    /// Threads of a work group.
    pub(super) fn threads(&self) -> usize {
        self.row_tiles * self.split * self.subgroup
    }
}

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
    /// Keys that a subgroup looks at together.
    pub look: usize,
    /// Row tiles of a subgroup.
    pub row_tiles: usize,
    /// Sets of rows of a work group, each of one subgroup or of those that share it.
    pub groups: usize,
    /// Subgroups that share the same rows.
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
        // A row's maximum is looked at once per look, which must be the same for both paths. How many rows share a key is
        // bound by registers, and the keys of a step by workgroup memory: 48 KiB, or 32 KiB with small tiles.
        let (keys, look, row_tiles, groups, split) = match params.head_dim.max(params.value_dim) {
            0..=64 => (32, 32, 2, 4, 1),
            65..=128 => (32, 16, 1, 8, 1),
            129..=256 => (16, 16, 1, 4, 2),
            _ => (tile, tile, 1, 1, 4),
        };
        let (row_tiles, groups, split) = match path {
            Path::Prefill => (row_tiles, groups, split),
            // Never fewer than two subgroups: one alone is miscompiled for Apple's GPUs.
            Path::Decode => (1, 1, split.max(2)),
        };
        Some(Self { tile, subgroup, keys, look, row_tiles, groups, split, wide: abilities.vector_tiles })
    }

    /// Subgroups of a work group.
    pub(super) fn subgroups(&self) -> usize {
        self.groups * self.split
    }

    /// Rows of a work group.
    pub(super) fn rows(&self) -> usize {
        self.groups * self.row_tiles * self.tile
    }

    /// Elements of a row that a lane takes at once.
    pub(super) fn vector(&self) -> usize {
        (self.tile * self.tile / self.subgroup).min(4)
    }

    /// Elements of f32 that a work group carries from one chunk to the next: of each thread its outputs, and a vector
    /// with the maximum and the sum for each of its rows.
    pub(super) fn carried(&self, value_dim: usize) -> usize {
        let columns = value_dim.div_ceil(self.tile * self.split) * self.tile;
        let outputs = columns * self.tile / self.subgroup;
        self.threads() * self.row_tiles * (outputs + self.vector())
    }

    /// Threads of a work group.
    pub(super) fn threads(&self) -> usize {
        self.subgroups() * self.subgroup
    }
}

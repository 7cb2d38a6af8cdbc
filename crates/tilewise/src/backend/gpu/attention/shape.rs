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
    /// The layout of a kernel, where the device has matrix units and memory for it, and the keys' type fits them.
    pub(super) fn new(abilities: &Abilities, params: &AttentionParams, path: Path) -> Option<Self> {
        let (tile, subgroup) = (abilities.matrix_tile? as usize, abilities.subgroup? as usize);
        // A lane has at least a pair of a row.
        if params.kv_dtype == DType::F32 || !(tile..=tile * tile / 2).contains(&subgroup) {
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
        let wide = abilities.vector_tiles;
        let prefill = Self { tile, subgroup, keys, look, row_tiles, groups, split, wide };
        // Decode needs less: both take this kernel or none does.
        if prefill.memory(params) > abilities.workgroup_memory as usize {
            return None;
        }
        Some(match path {
            Path::Prefill => prefill,
            // Never fewer than two subgroups: one alone is miscompiled for Apple's GPUs.
            Path::Decode => Self { row_tiles: 1, groups: 1, split: split.max(2), ..prefill },
        })
    }

    /// Bytes of workgroup memory.
    fn memory(&self, params: &AttentionParams) -> usize {
        let (tile, split) = (self.tile, self.split);
        let rows =
            params.head_dim.next_multiple_of(tile) + params.value_dim.next_multiple_of(tile * split) + 16;
        let scores = self.subgroups() * tile * ((self.look + 4) * 4 + (self.look + 8) * 2);
        2 * self.keys * rows + scores + 4 * self.keys
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

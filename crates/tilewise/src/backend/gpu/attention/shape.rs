//! How a matrix kernel is laid out. How many rows share a work group is a matter of the work; what bits depend on, the
//! keys of a look, is a function of the head's sizes and the device alone.

use super::super::context::Abilities;
use crate::{AttentionParams, BatchLayout, DType, Mask};

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

/// How many rows a work group takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// As many as pay off where there are enough of such work groups for the whole device.
    Large,
    /// Fewer, that short prompts are spread further and windows read fewer keys beside their rows'.
    Small,
    /// One tile of them: decode.
    Tile,
}

impl Size {
    /// The size of the work groups that compute the prompts of a batch.
    pub(super) fn of(abilities: &Abilities, params: &AttentionParams, layout: &BatchLayout) -> Self {
        let Some(large) = MatrixShape::new(abilities, params, Self::Large) else { return Self::Small };
        let full = |queries: usize| queries * params.group_size() / large.rows() * params.num_kv_heads;
        let groups: usize = (0..layout.num_sequences()).map(|s| full(layout.num_queries(s))).sum();
        match params.mask {
            Mask::Window { left: Some(_), .. } => Self::Small,
            _ if groups < abilities.busy => Self::Small,
            _ => Self::Large,
        }
    }
}

impl MatrixShape {
    /// The layout of a kernel, where the device has matrix units and memory for it, and the keys' type fits them.
    pub(super) fn new(abilities: &Abilities, params: &AttentionParams, size: Size) -> Option<Self> {
        let (tile, subgroup) = (abilities.matrix_tile? as usize, abilities.subgroup? as usize);
        // A lane has at least a pair of a row.
        if params.kv_dtype == DType::F32 || !(tile..=tile * tile / 2).contains(&subgroup) {
            return None;
        }
        // A row's maximum is looked at once per look, which must be the same for all sizes. How many rows share a key is
        // bound by registers, and the keys of a step by workgroup memory: 48 KiB, or 32 KiB with small tiles
        // (bench/records/2026-11-24-h200.csv).
        let head = params.head_dim.max(params.value_dim);
        let (keys, look, row_tiles, groups, split) = match (head, size) {
            (0..=64, Size::Large) => (64, 16, 2, 8, 1),
            (0..=64, _) => (32, 16, 2, 4, 1),
            (65..=128, Size::Large) => (32, 16, 1, 12, 1),
            (65..=128, _) => (32, 16, 1, 8, 1),
            (129..=256, _) => (16, 16, 1, 4, 2),
            _ => (tile, tile, 1, 1, 4),
        };
        let wide = abilities.vector_tiles;
        let shape = Self { tile, subgroup, keys, look, row_tiles, groups, split, wide };
        let fits = shape.memory(params) <= abilities.workgroup_memory as usize;
        match size {
            Size::Large if !fits => Self::new(abilities, params, Size::Small),
            // Decode needs less: it takes this kernel where prompts do.
            _ if !fits => None,
            // Never fewer than two subgroups: one alone is miscompiled for Apple's GPUs.
            Size::Tile => Some(Self { row_tiles: 1, groups: 1, split: split.max(2), ..shape }),
            _ => Some(shape),
        }
    }

    /// Bytes of workgroup memory.
    fn memory(&self, params: &AttentionParams) -> usize {
        let (tile, split) = (self.tile, self.split);
        let rows =
            params.head_dim.next_multiple_of(tile) + params.value_dim.next_multiple_of(tile * split) + 16;
        let scores = self.subgroups() * tile * (self.look + 8) * 6;
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

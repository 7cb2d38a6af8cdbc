//! How a matrix kernel is laid out. How many rows share a work group is a matter of the work; what bits depend on, the
//! keys of a look, is a function of the head's sizes and the device alone.

use super::super::context::Abilities;
use super::super::elements::Elements;
use crate::plan::KV_CHUNK;
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
    /// Which elements of matrices threads hold, where scores become weights among them.
    pub elements: Option<Elements>,
}

/// How many rows a work group takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    /// As many as pay off where there are enough of such work groups for the whole device.
    Large,
    /// No more, and fewer where that is as fast: short prompts are spread further.
    Small,
    /// As few, of which several share a multiprocessor: in a window, starting and ending takes much of their time.
    Window,
    /// One tile of them: decode by few work groups, each of which has much on its way.
    Tile,
    /// The same by many, of which as many as possible share a multiprocessor.
    ManyTiles,
}

impl Size {
    /// The size of the work groups that compute the prompts of a batch.
    pub(super) fn of(abilities: &Abilities, params: &AttentionParams, layout: &BatchLayout) -> Self {
        let Some(large) = MatrixShape::new(abilities, params, Self::Large) else { return Self::Small };
        let full = |queries: usize| queries * params.group_size() / large.rows() * params.num_kv_heads;
        let groups: usize = (0..layout.num_sequences()).map(|s| full(layout.num_queries(s))).sum();
        match params.mask {
            Mask::Window { left: Some(_), .. } => Self::Window,
            _ if groups < abilities.busy => Self::Small,
            _ => Self::Large,
        }
    }

    /// The size of the work groups that decode a batch.
    pub(super) fn of_decode(abilities: &Abilities, params: &AttentionParams, layout: &BatchLayout) -> Self {
        let chunks = |sequence| layout.num_keys(sequence).div_ceil(KV_CHUNK);
        let groups = (0..layout.num_sequences()).map(chunks).sum::<usize>() * params.num_kv_heads;
        if groups < abilities.busy { Self::Tile } else { Self::ManyTiles }
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
        // (bench/records/2026-11-24-h200.csv, 2026-11-25-h200.csv; with elements 2026-11-28-h200.csv).
        let head = params.head_dim.max(params.value_dim);
        let wide = abilities.vector_tiles;
        let elements = abilities.elements;
        let (keys, look, row_tiles, groups, split) = match (head, size) {
            (0..=64, Size::Large) if elements.is_some() => (128, 16, 1, 16, 1),
            (65..=128, Size::Large | Size::Small) if elements.is_some() => (64, 16, 1, 8, 1),
            (0..=64, Size::Large) => (64, 16, 2, 8, 1),
            (0..=64, _) => (32, 16, 2, 4, 1),
            (65..=128, Size::Large) => (32, 16, 2, 8, 1),
            (65..=128, Size::Window) if elements.is_some() => (32, 16, 1, 4, 1),
            (65..=128, Size::Window) => (16, 16, 2, 4, 1),
            // Three to five of them fit in the memory of a multiprocessor, where of twice the keys two do.
            (65..=128, Size::ManyTiles) if wide => (16, 16, 1, 1, 2),
            (65..=128, _) => (32, 16, 1, 8, 1),
            (129..=256, _) => (16, 16, 1, 4, 2),
            _ => (tile, tile, 1, 1, 4),
        };
        let fits = |shape: &Self| {
            shape.memory(params) <= abilities.workgroup_memory as usize
                && shape.threads() <= abilities.workgroup_threads as usize
        };
        let mut shape = Self { tile, subgroup, keys, look, row_tiles, groups, split, wide, elements };
        while elements.is_some() && shape.keys > look && !fits(&shape) {
            shape.keys /= 2;
        }
        let fits = fits(&shape);
        if size == Size::Small {
            return fits.then_some(shape);
        }
        // All sizes take this kernel, or none does.
        let small = Self::new(abilities, params, Size::Small)?;
        Some(match size {
            // Never fewer than two subgroups: one alone is miscompiled for Apple's GPUs.
            Size::Tile | Size::ManyTiles => Self { row_tiles: 1, groups: 1, split: split.max(2), ..shape },
            _ if fits => shape,
            _ => small,
        })
    }

    /// Bytes of workgroup memory.
    fn memory(&self, params: &AttentionParams) -> usize {
        let (tile, split) = (self.tile, self.split);
        let rows =
            params.head_dim.next_multiple_of(tile) + params.value_dim.next_multiple_of(tile * split) + 16;
        let (keys, scores) = (2 * self.keys * rows, self.subgroups() * tile * self.score_row());
        match self.elements {
            // The places of elements, and keys and values, in whose place queries are exchanged.
            Some(_) => tile * tile * 4 + keys.max(2 * scores) + 16,
            // Scores of f32, and weights of f16.
            None => keys + 6 * scores + 16,
        }
    }

    /// Elements from a row of scores or outputs to the next, in memory: padded, against bank conflicts.
    pub(super) fn score_row(&self) -> usize {
        self.look + 8
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

    /// Elements of f32 that a work group carries from one chunk to the next: of each thread its outputs, and in whole vectors
    /// the maxima and the sums of its rows.
    pub(super) fn carried(&self, value_dim: usize) -> usize {
        let columns = value_dim.div_ceil(self.tile * self.split) * self.tile;
        let outputs = columns * self.tile / self.subgroup;
        let rows = self.elements.map_or(1, |elements| elements.firsts().count());
        self.threads() * self.row_tiles * (outputs + (2 * rows).next_multiple_of(self.vector()))
    }

    /// Threads of a work group.
    pub(super) fn threads(&self) -> usize {
        self.subgroups() * self.subgroup
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::elements::tests::nvidia;
    use super::*;

    const ABILITIES: Abilities = Abilities {
        matrix_tile: Some(16),
        subgroup: Some(32),
        vector_tiles: true,
        elements: None,
        workgroup_memory: 48 << 10,
        workgroup_threads: 1024,
        binding: 1 << 30,
        busy: 512,
    };

    #[test]
    fn work_groups_are_large_where_there_are_enough_and_keys_are_not_in_a_window() {
        let params = AttentionParams::new(16, 16, 128).dtypes(DType::F16, DType::F16);
        let window = Mask::Window { left: Some(511), right: None, causal: true };
        let right = Mask::Window { left: None, right: Some(3), causal: false };
        for (mask, tokens, size) in [
            (Mask::Causal, 8192, Size::Large),
            (Mask::Full, 8192, Size::Large),
            (right, 8192, Size::Large),
            (window, 8192, Size::Window),
            (Mask::Causal, 2048, Size::Small),
            (Mask::Causal, 1, Size::Small),
        ] {
            let layout = BatchLayout::ragged(vec![0, tokens], vec![tokens]).unwrap();
            assert_eq!(Size::of(&ABILITIES, &params.clone().mask(mask), &layout), size, "{mask:?} {tokens}");
        }
    }

    #[test]
    fn decode_by_many_work_groups_takes_less_memory_for_each() {
        let params = AttentionParams::new(16, 8, 128).dtypes(DType::F32, DType::Bf16);
        for (sequences, keys, size) in [
            (1, 160, Size::Tile),
            (1, 32768, Size::Tile),
            (8, 8192, Size::ManyTiles),
            (64, 100, Size::ManyTiles),
        ] {
            let layout = BatchLayout::dense(sequences, 1, keys).unwrap();
            assert_eq!(Size::of_decode(&ABILITIES, &params, &layout), size, "{sequences} of {keys}");
        }
        for abilities in [ABILITIES, Abilities { elements: Some(nvidia()), ..ABILITIES }] {
            let memory = |size| MatrixShape::new(&abilities, &params, size).unwrap().memory(&params);
            // Of 50 KiB: with elements four at once and more, else three.
            let most = if abilities.elements.is_some() { 12 << 10 } else { 14 << 10 };
            assert!(memory(Size::ManyTiles) < most && memory(Size::Tile) < 24 << 10);
        }
    }

    #[test]
    fn steps_are_as_long_as_memory_allows() {
        let params = AttentionParams::new(16, 8, 128).dtypes(DType::F32, DType::F16);
        let keys = |workgroup_memory| {
            let abilities = Abilities { elements: Some(nvidia()), workgroup_memory, ..ABILITIES };
            MatrixShape::new(&abilities, &params, Size::Large).map(|shape| shape.keys)
        };
        assert_eq!([48 << 10, 32 << 10, 16 << 10, 8 << 10].map(keys), [Some(64), Some(32), Some(16), None]);
    }

    #[test]
    fn all_sizes_look_at_as_many_keys_and_fit_where_one_does() {
        for head_dim in (8..=512).step_by(8) {
            let params = AttentionParams::new(4, 2, head_dim).dtypes(DType::F32, DType::F16);
            for abilities in [
                ABILITIES,
                Abilities { elements: Some(nvidia()), ..ABILITIES },
                Abilities { elements: Some(nvidia()), workgroup_memory: 32 << 10, ..ABILITIES },
                Abilities { matrix_tile: Some(8), workgroup_memory: 32 << 10, ..ABILITIES },
                Abilities { workgroup_memory: 32 << 10, ..ABILITIES },
                Abilities { workgroup_memory: 16 << 10, ..ABILITIES },
            ] {
                let shapes = [Size::Large, Size::Small, Size::Window, Size::Tile, Size::ManyTiles]
                    .map(|size| MatrixShape::new(&abilities, &params, size));
                let looks = shapes.map(|shape| shape.map(|shape| (shape.tile, shape.look)));
                assert!(looks.iter().all(|own| *own == looks[0]), "{head_dim} {abilities:?}: {looks:?}");
                for shape in shapes.iter().flatten() {
                    assert!(shape.memory(&params) <= abilities.workgroup_memory as usize, "{shape:?}");
                    assert_eq!(shape.keys % shape.look, 0, "{shape:?}");
                }
            }
        }
    }
}

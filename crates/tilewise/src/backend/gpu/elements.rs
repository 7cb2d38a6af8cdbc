//! Which elements of a matrix each thread of a subgroup holds. No interface says so: the device is asked.

use super::pipeline::{Pipeline, Specialisation};

/// The most elements of a thread that are dealt with.
const MOST: usize = 16;

/// Elements of the largest tile that is dealt with.
const TILE: usize = 256;

/// Of each element of a thread: its place in a matrix C of f32, an A and a B of f16. B is loaded as weights are, whose rows
/// are its columns.
type Places = [f32; 3];

/// Who has two neighbours of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// One thread, as elements of which the first has an even number.
    OfThread,
    /// Two threads whose numbers differ in the last bit, as the same element.
    OfNeighbours,
}

/// What is known of the threads of a subgroup, of a matrix C of f32, one A and one B of f16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Elements {
    count: u8,
    /// The first element that is in the same row, of each.
    first: [u8; MOST],
    /// The element of A that stands in the same place, of each of C.
    factor: [u8; MOST],
    /// Threads whose numbers differ in these bits have other elements of the same rows.
    lane_bits: u8,
    /// Who has the neighbours of a row of C, the first in an even column.
    pairs: Pairs,
    /// Thread by thread, where the elements of B are in a tile of weights: each thread has eight.
    weights: Option<[u8; TILE]>,
}

impl Elements {
    /// Elements of a thread.
    pub(super) fn count(&self) -> u32 {
        u32::from(self.count)
    }

    /// The elements that are a thread's first of their rows.
    pub(super) fn firsts(&self) -> impl Iterator<Item = u32> {
        (0..self.count()).filter(|&at| self.first(at) == at)
    }

    /// The first element in the row of one.
    pub(super) fn first(&self, at: u32) -> u32 {
        u32::from(self.first[at as usize])
    }

    /// The element of a matrix A in the place of one of a matrix C.
    pub(super) fn factor(&self, at: u32) -> u32 {
        u32::from(self.factor[at as usize])
    }

    /// See the field.
    pub(super) fn lane_bits(&self) -> u32 {
        u32::from(self.lane_bits)
    }

    /// Neighbours of a row that a thread has.
    pub(super) fn width(&self) -> usize {
        match self.pairs {
            Pairs::OfThread => 2,
            Pairs::OfNeighbours => 1,
        }
    }

    /// See the field. What follows the elements of a tile is of no meaning.
    pub(super) fn weights(&self) -> Option<&[u8; TILE]> {
        self.weights.as_ref()
    }

    /// What the threads of a subgroup have in common, from the places of each thread's elements. `None` where
    /// that is not enough to compute with rows: a place of C is not the same element of A in all threads, elements share
    /// a row in some threads only, a row's elements are not spread over threads like those of any other row, or two
    /// neighbours of a row are neither of one thread nor of two neighbouring ones.
    pub(super) fn of(places: &[Places], subgroup: usize, tile: usize) -> Option<Self> {
        let count = places.len() / subgroup;
        if !(4..=MOST).contains(&count) || places.len() != tile * tile {
            return None;
        }
        let thread = |thread: usize| &places[thread * count..][..count];
        let threads = || (0..subgroup).map(thread);
        let row = |own: &[Places], at: usize| own[at][0] as usize / tile;
        let is_pair = |first: f32, second: f32| first % 2.0 == 0.0 && second == first + 1.0;
        let of_thread = count.is_multiple_of(2) && places.chunks(2).all(|own| is_pair(own[0][0], own[1][0]));
        let alike = |own: &[Places]| (0..count).all(|at| is_pair(own[at][0], own[count + at][0]));
        let of_neighbours = subgroup.is_multiple_of(2) && places.chunks(2 * count).all(alike);
        let pairs = match (of_thread, of_neighbours) {
            (true, _) => Pairs::OfThread,
            (_, true) => Pairs::OfNeighbours,
            _ => return None,
        };
        let mut elements = Self {
            count: count as u8,
            first: [0; MOST],
            factor: [0; MOST],
            lane_bits: 0,
            pairs,
            weights: if count == 8 { weights(places) } else { None },
        };
        for at in 0..count {
            let first = (0..=at).find(|&other| threads().all(|own| row(own, other) == row(own, at)))?;
            let factor = (0..count).find(|&other| threads().all(|own| own[other][1] == own[at][0]))?;
            (elements.first[at], elements.factor[at]) = (first as u8, factor as u8);
        }
        let same_rows = |a: usize, b: usize| (0..count).all(|at| row(thread(a), at) == row(thread(b), at));
        for bit in (0..8).map(|bit| 1 << bit).filter(|bit| *bit < subgroup) {
            if (0..subgroup).all(|own| same_rows(own, own ^ bit)) {
                elements.lane_bits |= bit as u8;
            }
        }
        // Kernels exchange by these five.
        if elements.lane_bits > 0b11111 {
            return None;
        }
        // A row's columns, in the order in which they are added up: those of each thread, thread by thread.
        let mut rows = vec![Vec::new(); tile];
        for own in threads() {
            for first in elements.firsts() {
                let in_row = (0..count).filter(|&at| u32::from(elements.first[at]) == first);
                rows.get_mut(row(own, first as usize))?
                    .push(in_row.map(|at| own[at][0] as usize % tile).collect::<Vec<_>>());
            }
        }
        let all: std::collections::HashSet<usize> = rows[0].iter().flatten().copied().collect();
        let of_threads = 1 << elements.lane_bits.count_ones();
        let alike = rows.iter().all(|row| *row == rows[0]) && rows[0].len() == of_threads;
        (alike && all.len() == tile && rows[0].iter().flatten().count() == tile).then_some(elements)
    }
}

/// Places of the elements of B in a tile of weights, if each place is there once.
fn weights(places: &[Places]) -> Option<[u8; TILE]> {
    let mut weights = [0; TILE];
    let mut seen = [false; TILE];
    for (weight, [.., place]) in weights.iter_mut().zip(places) {
        *weight = *place as u8;
        *seen.get_mut(*place as usize)? = true;
    }
    (places.len() <= TILE && seen[..places.len()].iter().all(|seen| *seen)).then_some(weights)
}

/// The kernel that says where elements are, of two subgroups.
pub(super) fn kernel(tile: u32, subgroup: u32) -> Specialisation {
    Specialisation::new("elements", include_str!("elements.wgsl"))
        .set("T", tile)
        .set("SUBGROUP", subgroup)
        .set("COUNT", tile * tile / subgroup)
}

/// Asks a device. `None` where it does not say, subgroups differ, or threads have too little in common.
pub(super) fn ask(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    kernel: &Pipeline,
    tile: u32,
    subgroup: u32,
) -> Option<Elements> {
    let size = u64::from(2 * tile * tile) * size_of::<Places>() as u64;
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let out = buffer(wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC);
    let staging = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &kernel.layout,
        entries: &[wgpu::BindGroupEntry { binding: 0, resource: out.as_entire_binding() }],
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&kernel.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&out, 0, &staging, 0, size);
    queue.submit([encoder.finish()]);
    let slice = staging.slice(..);
    slice.map_async(wgpu::MapMode::Read, |_| {});
    device.poll(wgpu::PollType::wait_indefinitely()).ok()?;
    let mapped = slice.get_mapped_range().ok()?;
    let places: &[Places] = bytemuck::cast_slice(&mapped);
    let (first, second) = places.split_at((tile * tile) as usize);
    Elements::of(first, subgroup as usize, tile as usize).filter(|_| first == second)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Places by a thread and the number of an element, the same in C, A and B.
    fn places(subgroup: usize, tile: usize, place: impl Fn(usize, usize) -> (usize, usize)) -> Vec<Places> {
        let count = tile * tile / subgroup;
        let all = (0..subgroup).flat_map(|thread| (0..count).map(move |at| (thread, at)));
        all.map(|(thread, at)| place(thread, at))
            .map(|(row, column)| [(row * tile + column) as f32; 3])
            .collect()
    }

    /// As NVIDIA's driver lays out tiles of 16x16.
    pub(in super::super) fn nvidia() -> Elements {
        let place =
            |thread: usize, at: usize| (thread / 4 + at / 4 * 8, thread % 4 * 2 + at % 2 + at / 2 % 2 * 8);
        Elements::of(&places(32, 16, place), 32, 16).unwrap()
    }

    #[test]
    fn rows_are_found_where_threads_share_them() {
        let elements = nvidia();
        assert_eq!((elements.count(), elements.lane_bits()), (8, 0b11));
        assert_eq!(elements.firsts().collect::<Vec<_>>(), [0, 4]);
        assert_eq!((0..8).map(|at| elements.factor(at)).collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(elements.width(), 2);
        // A column for each thread, as Mesa's software adapter has it; and a row for each.
        let columns = Elements::of(&places(8, 8, |thread, at| (at, thread)), 8, 8).unwrap();
        assert_eq!((columns.firsts().count(), columns.lane_bits(), columns.width()), (8, 0b111, 1));
        let rows = Elements::of(&places(8, 8, |thread, at| (thread, at)), 8, 8).unwrap();
        assert_eq!((rows.firsts().count(), rows.lane_bits()), (1, 0));
    }

    #[test]
    fn a_factor_with_another_order_is_mapped_and_one_with_other_threads_is_refused() {
        let mut own = places(8, 8, |thread, at| (thread, at));
        own.iter_mut().for_each(|place| place[1] = (place[1] as u32 ^ 1) as f32);
        let elements = Elements::of(&own, 8, 8).unwrap();
        assert_eq!((elements.factor(0), elements.factor(1)), (1, 0));
        own.iter_mut().for_each(|place| place[1] = (place[0] as u32 ^ 8) as f32);
        assert_eq!(Elements::of(&own, 8, 8), None);
    }

    #[test]
    fn weights_are_ordered_where_threads_hold_each_place_of_a_tile_once() {
        let mut own = places(8, 8, |thread, at| (at, thread));
        let weights = |own: &[Places]| Elements::of(own, 8, 8).unwrap().weights().copied();
        assert_eq!(weights(&own).unwrap()[..10], [0, 8, 16, 24, 32, 40, 48, 56, 1, 9]);
        own[3][2] = 0.0;
        assert_eq!(weights(&own), None);
        own[3][2] = f32::INFINITY;
        assert_eq!(weights(&own), None);
    }

    #[test]
    fn rows_over_more_threads_than_kernels_exchange_with_are_refused() {
        // Four threads have a row: of 32 they are neighbours, of 64 they differ in the upper bits too.
        let near = |thread: usize, at: usize| (thread / 4 + at / 4 * 8, thread % 4 + at % 4 * 4);
        assert!(Elements::of(&places(32, 16, near), 32, 16).is_some());
        let far = |thread: usize, at: usize| (thread % 16, thread / 16 + at * 4);
        assert_eq!(Elements::of(&places(64, 16, far), 64, 16), None);
    }

    #[test]
    fn rows_that_are_not_spread_alike_are_refused() {
        // Two rows change places in some threads; the columns of one row are in another order; a place is missing.
        let swaps = |thread: usize, at: usize| (at ^ usize::from(thread == 3), thread);
        assert_eq!(Elements::of(&places(8, 8, swaps), 8, 8), None);
        let order = |thread: usize, at: usize| (thread, at ^ usize::from(thread == 3));
        assert_eq!(Elements::of(&places(8, 8, order), 8, 8), None);
        assert_eq!(Elements::of(&[[0.0; 3]; 64], 8, 8), None);
    }
}

//! What sequences that gave way have outside the simulated memory.

use std::collections::HashMap;

use tilewise_engine::RequestId;
use tilewise_engine::scheduler::{BatchPlan, SwappedPages};

use crate::machine::{PAGE, Simulation};

/// The contents of saved pages, by whose they are: the place of the first page, and all slots.
#[derive(Default)]
pub(crate) struct Host {
    kept: HashMap<(RequestId, usize), (usize, Vec<u64>)>,
    saved: u64,
    restored: u64,
}

impl Host {
    /// Pages that were saved and restored by steps that were committed.
    pub(crate) fn moved(&self) -> (u64, u64) {
        (self.saved, self.restored)
    }
}

impl Simulation {
    /// Saves and restores pages as a batch says.
    pub(crate) fn swap(&mut self, batch: &BatchPlan) {
        for save in &batch.saves {
            let slots = save.pages.iter().flat_map(|page| &self.slots[page.0 as usize * PAGE..][..PAGE]);
            self.host.kept.insert(save.of, (save.first, slots.copied().collect()));
        }
        for restore in &batch.restores {
            let (first, slots) = &self.host.kept[&restore.of];
            let pages = slots.chunks_exact(PAGE).skip(restore.first - first);
            assert_eq!(pages.len(), restore.pages.len(), "{restore:?} is restored in part");
            for (page, content) in restore.pages.iter().zip(pages) {
                assert_eq!(self.pages.holders(*page), 1, "page {} is restored and shared", page.0);
                self.slots[page.0 as usize * PAGE..][..PAGE].copy_from_slice(content);
            }
        }
    }

    /// Frees what is of no use after a batch that was committed.
    pub(crate) fn keep_swapped(&mut self, batch: &BatchPlan) {
        let pages = |runs: &[SwappedPages]| runs.iter().map(|run| run.pages.len() as u64).sum::<u64>();
        self.host.saved += pages(&batch.saves);
        self.host.restored += pages(&batch.restores);
        let wanted = self.scheduler.swapped();
        self.host.kept.retain(|of, _| wanted.contains(of));
        assert_eq!(self.host.kept.len(), wanted.len(), "{wanted:?} are thought to be saved");
        let pages: usize = self.host.kept.values().map(|(_, slots)| slots.len() / PAGE).sum();
        assert_eq!(pages, self.scheduler.num_swapped_pages());
        assert!(pages <= self.swap_pages, "{pages} pages are kept, of {}", self.swap_pages);
    }
}
